"""Sequences in device batches, and their positions in slices of the head."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.tools import datum, tokens
from txlab.engine.losses import FUSED, FUSED_INPUTS, LOSSES
from txlab.engine.packing import HEAD_TOKENS, MIN_WIDTH, Item, Scored, TrainBatch, bucket, head_slices, pack
from txlab.engine.requests import Datum, RequestError
from txlab.models.config import BLOCK

CE = LOSSES["cross_entropy"]


def items(lengths, adapters=None):
    return [Item(0, i, 0 if adapters is None else adapters[i], datum(n, i), CE, {}) for i, n in enumerate(lengths)]


def log_uniform(seed: int, count: int, low: int = 16, high: int = 512) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).uniform(np.log(low), np.log(high + 1), count)).astype(int)


def shapes(batch: TrainBatch) -> list[tuple[int, tuple[int, ...]]]:
    """Width and reach of its windows."""
    return [(window.width, window.reach) for window in batch.windows]


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_every_token_lies_in_exactly_one_place(seed, streams):
    given = items(log_uniform(seed, 40, 1), np.random.default_rng(seed).integers(0, 3, 40))
    placed = {}
    for batch in pack(given, 1024, streams):
        used = np.zeros(len(batch.tokens), int)
        for p in batch.placements:
            used[p.span] += 1
            placed[p.item.index] = p.item
            assert (batch.tokens[p.span] == p.item.datum.tokens).all()
            assert (batch.positions[p.span] == np.arange(len(p.item))).all()
            (window,) = [w for w in batch.windows if w.start <= p.start < w.start + w.width]
            assert p.span.stop <= window.start + window.width
            assert window.adapter == p.item.adapter
            inside = batch.segment_ids[window.start : window.start + window.width]
            assert (inside == batch.segment_ids[p.start]).sum() == len(p.item), "its id is its own in the window"
        assert used.max() == 1
        assert ((batch.segment_ids > 0) == (used == 1)).all()
    assert sorted(placed) == list(range(40))


def test_windows_are_powers_of_two_side_by_side_within_the_budget():
    for batch in pack(items([300, 20, 20, 20, 7, 130, 64, 512, 500]), 1024):
        assert len(batch.tokens) == 1024
        end = 0
        for window in batch.windows:
            assert window.width == bucket(window.width, MIN_WIDTH)
            assert window.start == end
            end += window.width
        assert end <= 1024


def test_sequences_lie_side_by_side_across_blocks():
    (batch,) = pack(items([100] * 7 + [300]), 2048)
    assert shapes(batch) == [(512, (1, 2, 3, 2)), (512, (1, 2, 2, 2))], "two beside the longest, then five"
    (batch,) = pack(items([300, 20, 130, 250, 100]), 2048)
    assert shapes(batch) == [(512, (1, 2, 3, 2)), (256, (1, 2)), (128, (1,))], "450 in the first window"
    (batch,) = pack(items([79] * 12), 1024)
    assert shapes(batch) == [(512, (1, 2, 2, 2))] * 2, "six in each"
    assert all(shapes(b) == [(128, (1,))] for b in pack(items([90] * 5), 128)), "none is joined"


def test_a_half_and_a_quarter_of_a_window_where_they_do():
    (batch,) = pack(items([75] * 4), 1024)
    assert shapes(batch) == [(256, (1, 2)), (128, (1,))]
    (batch,) = pack(items([75] * 3 + [90] * 2), 1024)
    assert shapes(batch) == [(512, (1, 2, 2, 2))], "what a half leaves needs more than a quarter"


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_each_block_reaches_back_to_where_its_sequences_start_and_no_further(seed, streams):
    given = items([300, 20, 130, 600, *log_uniform(seed, 40, 1)], [0] * 4 + [i % 3 for i in range(40)])
    for batch in pack(given, 1024, streams):
        for window in batch.windows:
            expected = []
            for block in range(0, window.width, BLOCK):
                here = set(range(window.start + block, min(window.start + block + BLOCK, window.start + window.width)))
                starts = [p.start for p in batch.placements if here & set(range(p.span.start, p.span.stop))]
                first = (min(starts, default=min(here)) - window.start) // BLOCK
                expected.append(block // BLOCK - first + 1)
            assert window.reach == tuple(expected)


@pytest.mark.parametrize(
    ("lengths", "used"),
    [
        ([64] * 8, [256, 256]),
        ([128] * 8, [512, 512]),
        ([128] * 5, [256, 384]),
        ([64] * 4, [128, 128]),
        ([500, 500], [512, 512]),
        ([25], [64]),
    ],
)
def test_each_stream_gets_its_share(lengths, used):
    batches = list(pack(items(lengths), 512, streams=2))
    assert sorted(batch.used[1] for batch in batches) == used
    assert {len(batch.tokens) for batch in batches} == {512}, "the programs are the same"


def test_adapters_are_spread_over_streams():
    batches = list(pack(items([128] * 4, range(4)), 512, streams=2))
    assert [[window.adapter for window in batch.windows] for batch in batches] == [[0, 1], [2, 3]]


def test_a_large_request_fills_its_batches():
    batches = list(pack(items([128] * 11), 512, streams=2))
    assert [batch.used[1] for batch in batches] == [512, 512, 384]
    assert {len(batch.tokens) for batch in batches} == {512}


def test_a_sequence_longer_than_the_budget_gets_a_batch_of_its_own():
    first, second = pack(items([700, 30], [0, 1]), 256)
    assert (len(first.tokens), [w.width for w in first.windows]) == (1024, [1024])
    assert (len(second.tokens), [w.width for w in second.windows]) == (256, [64])


def test_short_sequences_of_one_adapter_share_windows():
    (batch,) = pack(items([25] * 7), 1024)
    assert shapes(batch) == [(128, (1,)), (64, (1,))], "five and two"
    (alone,) = pack(items([25]), 1024)
    assert shapes(alone) == [(64, (1,))], "one short sequence is not padded to a wide window"
    (apart,) = pack(items([25] * 3, [0, 1, 1]), 1024)
    assert [(w.width, w.adapter) for w in apart.windows] == [(64, 0), (64, 1)]


@pytest.mark.parametrize(("budget", "streams"), [(1024, 1), (512, 2)])
@pytest.mark.parametrize("seed", range(10))
def test_ragged_data_has_little_padding(seed, budget, streams):
    batches = list(pack(items(log_uniform(seed, 32)), budget, streams))
    room = sum(w.width for batch in batches for w in batch.windows)
    used = sum(len(p.item) for batch in batches for p in batch.placements)
    assert used / room >= 0.9
    assert sum(np.array(batch.used) for batch in batches).tolist() == [used, room]


def scored(given, batch, **kw):
    found = [Scored(p, p.item.loss, p.item.inputs(p.item.loss), True) for p in batch.placements]
    return found, list(head_slices(found, len(batch.tokens)))


def test_slices_hold_each_position_once_those_with_a_gradient_apart():
    half = {"weights": np.arange(150) % 2}
    given = [Item(0, i, i % 2, datum(150, i, **half), CE, {}) for i in range(4)]
    (batch,) = pack(given, 1024)
    found, parts = scored(given, batch)
    index = np.concatenate([part.index[part.scored >= 0] for part in parts])
    assert sorted(index) == sorted(np.flatnonzero(batch.segment_ids))
    for part in parts:
        real = part.scored >= 0
        assert len(real) == HEAD_TOKENS
        assert (part.index[~real] == len(batch.tokens)).all()
        assert ((part.inputs["weights"][real] != 0) == part.backward).all()
        assert {found[n].placement.item.adapter for n in part.scored[real]} == {part.adapter}
    wide = [part for part in parts if part.backward]
    assert [(len(part.index), (part.scored >= 0).sum()) for part in wide] == [(128, 128), (128, 22)] * 2


def test_slices_are_of_one_loss():
    policy = {"logprobs": 0.5, "advantages": 2.0}
    given = [Item(0, 0, 0, datum(9), CE, {}), Item(0, 1, 0, datum(9, 1, **policy), LOSSES["ppo"], {})]
    (batch,) = pack(given, 256)
    _, (one, two) = scored(given, batch)
    assert (FUSED[one.kind].name, FUSED[two.kind].name) == ("cross_entropy", "ppo")
    assert set(one.inputs) == set(two.inputs) == set(FUSED_INPUTS), "so that they share a program"
    assert (one.inputs["weights"][:9] == 1).all(), "weights default to one"
    assert (two.inputs["advantages"] == np.where(two.scored >= 0, 2, 0)).all()


def test_a_slice_that_wants_no_gradient():
    (batch,) = pack(items([20]), 256)
    parts = list(head_slices([Scored(p, CE, {"weights": 1.0}, False) for p in batch.placements], 256))
    assert [part.backward for part in parts] == [False]


def test_options_become_inputs_and_a_datum_may_override_them():
    ppo = LOSSES["ppo"]
    required = {"logprobs": 0.0, "advantages": 1.0}
    given = [
        Item(0, 0, 0, datum(4, **required), ppo, {"clip_low_threshold": 0.5}),
        Item(0, 1, 0, datum(4, **required, clip_low_threshold=0.1), ppo, {}),
    ]
    (batch,) = pack(given, 256)
    _, (part,) = scored(given, batch)
    assert np.allclose(part.inputs["clip_low_threshold"][:8], [0.5] * 4 + [0.1] * 4)
    assert np.allclose(part.inputs["clip_high_threshold"][:8], 1.2)


def many(n, k, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(1, 300, (n, k)).astype(np.int32)
    return Datum(tokens(n, seed), targets, {"weights": rng.random((n, k)).astype(np.float32)})


def test_several_targets_keep_their_cells_and_the_rest_weighs_nothing():
    data = [many(9, 3, 0), many(20, 4, 1), many(5, 1, 2), datum(7, 3), many(6, 5, 4)]
    (batch,) = pack([Item(0, i, 0, d, CE, {}) for i, d in enumerate(data)], 1024)
    found, parts = scored(data, batch)
    assert [part.targets.shape[1:] for part in parts] == [(), (4,), (8,)]
    for part in parts:
        for number in set(part.scored) - {-1}:
            d = found[number].placement.item.datum
            rows = part.scored == number
            k = d.targets.size // len(d.targets)
            targets = part.targets[rows].reshape(len(d.targets), -1)
            weights = part.inputs["weights"][rows].reshape(targets.shape)
            np.testing.assert_array_equal(targets[:, :k], d.targets.reshape(-1, k))
            expected = d.inputs.get("weights", np.ones(d.targets.shape, np.float32))
            np.testing.assert_array_equal(weights[:, :k], expected.reshape(-1, k))
            assert not weights[:, k:].any()


def test_a_datum_that_a_replaced_loss_no_longer_fits_is_named():
    item = Item(0, 0, 0, datum(4, logprobs=0.0), LOSSES["ppo"], {})
    with pytest.raises(RequestError, match=r"data\[0\] lacks 'advantages', which ppo needs"):
        item.inputs(LOSSES["ppo"])
