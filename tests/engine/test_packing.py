"""Sequences in device batches."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.tools import datum, tokens
from txlab.engine.losses import LOSSES
from txlab.engine.packing import TARGETS_OF_A_TOKEN, Item, bucket, pack
from txlab.engine.requests import Datum, RequestError

CE = LOSSES["cross_entropy"]


def items(lengths, adapters=None):
    return [Item(0, i, 0 if adapters is None else adapters[i], datum(n, i), {}) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("seed", range(5))
def test_every_token_lies_in_exactly_one_place(seed):
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(0, np.log(512), 40)).astype(int)
    given = items(lengths, rng.integers(0, 3, 40))
    placed = {}
    for batch in pack(given, CE, 1024):
        used = np.zeros(batch.tokens.shape, int)
        for p in batch.placements:
            used[p.span] += 1
            placed[p.item.index] = p.item
            assert (batch.tokens[p.span] == p.item.datum.tokens).all()
            assert (batch.targets[p.span] == p.item.datum.targets).all()
            assert (batch.positions[p.span] == np.arange(len(p.item))).all()
            assert batch.adapters[p.row] == p.item.adapter
            assert len(set(batch.segment_ids[p.span])) == 1
        assert used.max() == 1
        assert ((batch.segment_ids > 0) == (used == 1)).all()
        assert (batch.inputs["weights"] == used).all(), "weights default to one, and to zero in padding"
        segments = [(p.row, batch.segment_ids[p.span][0]) for p in batch.placements]
        assert len(set(segments)) == len(segments)
    assert sorted(placed) == list(range(40))


def test_shapes_are_powers_of_two_within_the_budget():
    for batch in pack(items([300, 20, 20, 20, 7, 130, 64]), CE, 1024):
        rows, width = batch.tokens.shape
        assert rows == bucket(rows)
        assert width == bucket(width)
        assert rows * width <= 1024


def test_a_sequence_longer_than_the_budget_gets_a_row_of_its_own():
    (batch,) = pack(items([700]), CE, 256)
    assert batch.tokens.shape == (1, 1024)


def test_short_sequences_of_one_adapter_share_rows():
    (batch,) = pack(items([25] * 7), CE, 1024)
    assert batch.tokens.size == 256
    (alone,) = pack(items([25]), CE, 1024)
    assert alone.tokens.shape == (1, 32), "one short sequence is not padded to a wide row"


def test_options_become_inputs_and_a_datum_may_override_them():
    ppo = LOSSES["ppo"]
    required = {"logprobs": 0.0, "advantages": 1.0}
    given = [
        Item(0, 0, 0, datum(4, **required), {"clip_low_threshold": 0.5}),
        Item(0, 1, 0, datum(4, **required, clip_low_threshold=0.1), {}),
    ]
    (batch,) = pack(given, ppo, 256)
    low = [batch.inputs["clip_low_threshold"][p.span][0] for p in batch.placements]
    assert np.allclose(low, [0.5, 0.1])
    assert np.allclose(batch.inputs["clip_high_threshold"][batch.placements[0].span], 1.2)


def many(n, k, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(1, 300, (n, k)).astype(np.int32)
    return Datum(tokens(n, seed), targets, {"weights": rng.random((n, k)).astype(np.float32)})


def test_several_targets_keep_their_cells_and_the_rest_weighs_nothing():
    data = [many(9, 3, 0), many(20, 4, 1), many(5, 1, 2), datum(7, 3), many(6, 5, 4)]
    batches = list(pack([Item(0, i, 0, d, {}) for i, d in enumerate(data)], CE, 1024))
    assert [batch.targets.shape[2:] for batch in batches] == [(), (4,), (8,)]
    found = {}
    for batch in batches:
        weight = 0.0
        for p in batch.placements:
            d = p.item.datum
            found[p.item.index] = p
            np.testing.assert_array_equal(p.cells(batch.targets).reshape(d.targets.shape), d.targets)
            expected = d.inputs.get("weights", np.ones(d.targets.shape, np.float32))
            np.testing.assert_array_equal(p.cells(batch.inputs["weights"]).reshape(expected.shape), expected)
            weight += float(expected.sum(dtype=np.float64))
        assert batch.inputs["weights"].sum(dtype=np.float64) == pytest.approx(weight)
    assert sorted(found) == list(range(5))


def test_many_targets_make_batches_smaller():
    sizes = [batch.targets.size for batch in pack([Item(0, i, 0, many(16, 256, i), {}) for i in range(64)], CE, 1024)]
    assert max(sizes) <= 1024 * TARGETS_OF_A_TOKEN
    assert sum(sizes) == 64 * 16 * 256


def test_a_loss_across_positions_has_its_rows_alone():
    inputs = {"logprobs": 0.0, "advantages": 1.0, "sequence_ratio_mask": 1.0}
    given = [Item(0, i, 0, datum(n, i, **inputs), {}) for i, n in enumerate((20, 3, 5, 9, 2))]
    (batch,) = pack(given, LOSSES["gspo"], 1024)
    assert sorted(p.row for p in batch.placements) == list(range(5))
    assert {p.start for p in batch.placements} == {0}
    assert batch.tokens.shape == (8, 32)


def test_a_datum_that_a_replaced_loss_no_longer_fits_is_named():
    with pytest.raises(RequestError, match=r"data\[0\] lacks 'advantages', which ppo needs"):
        list(pack([Item(0, 0, 0, datum(4, logprobs=0.0), {})], LOSSES["ppo"], 64))
