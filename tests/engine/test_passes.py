"""Runs of requests side by side, and losses that are evaluated on the host between two passes over the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine.tools import Client, datum, tokens
from txlab.engine.engine import Engine
from txlab.engine.losses import DatumLossValue, Losses
from txlab.engine.packing import TrainBatch
from txlab.engine.passes import PassRun
from txlab.engine.requests import AdamParams, CreateAdapter, Datum, ForwardBackward, ForwardBackwardResult, RequestError
from txlab.engine.scheduler import Ticket
from txlab.engine.streams import Streams
from txlab.engine.trainer import Trainer, optim_step
from txlab.lora.adapter import Gradient, zero_gradient
from txlab.lora.bank import AdapterBank
from txlab.lora.state import LoraConfig
from txlab.models.mesh import replicated

LOSS_ID = "s:loss:0"
ONES = np.ones(4, np.float32)


@dataclass
class Squares:
    """Half the weighted sum of squares of the logprobs; ``scale`` is a number per datum."""

    name: str = LOSS_ID
    rank: int = 1
    inputs: Mapping[str, int] = field(default_factory=lambda: {"weights": 1, "scale": 0, "target_tokens": 1})

    def evaluate(self, logprobs: np.ndarray, inputs: Mapping[str, np.ndarray]) -> DatumLossValue:
        weights, scale = inputs["weights"], inputs["scale"]
        assert (logprobs.dtype, weights.shape, scale.shape) == (np.float32, logprobs.shape, ())
        assert inputs["target_tokens"].dtype == np.int64
        if scale == 13:
            raise ZeroDivisionError("thirteen")
        loss = 0.5 * float((scale * weights * logprobs**2).sum())
        return DatumLossValue(
            loss, scale * weights * logprobs, {"custom/n:sum": float(len(logprobs)), "custom/scale:mean": float(scale)}
        )


@pytest.fixture
def squares(engine: Engine) -> Iterator[Squares]:
    loss = Squares()
    engine.losses.add(loss)
    yield loss
    engine.losses.remove(loss.name)


def data(scale: float = 2.0, k: int | None = None) -> tuple[Datum, ...]:
    rng = np.random.default_rng(0)
    shapes = [(n,) if k is None else (n, k) for n in (9, 30, 14)]
    return tuple(
        Datum(
            tokens(shape[0], i),
            rng.integers(5, 300, shape).astype(np.int32),
            {"weights": rng.random(shape).astype(np.float32), "scale": np.float32([scale + i])},
        )
        for i, shape in enumerate(shapes)
    )


@pytest.mark.parametrize("k", [None, 3], ids=["one target", "three targets"])
def test_value_and_gradient(client: Client, another: Client, squares: Squares, k: int | None):
    """The same as weights of cross_entropy that hold the gradient."""
    squares.rank = 1 if k is None else 2
    given = data(k=k)
    result = client.forward_backward(*given, loss=LOSS_ID)
    forward = another.forward(*(Datum(d.tokens, d.targets) for d in given))
    losses, linear = [], []
    for d, got, logprobs in zip(given, result.logprobs, forward.logprobs, strict=True):
        assert got.shape == d.targets.shape
        np.testing.assert_allclose(got, logprobs, atol=1e-5)
        slope = d.inputs["scale"] * d.inputs["weights"] * logprobs
        losses.append(0.5 * (slope * logprobs).sum())
        linear.append(Datum(d.tokens, d.targets, {"weights": -slope}))
    assert result.metrics["loss:sum"] == pytest.approx(sum(losses), rel=1e-4)
    assert result.metrics["custom/n:sum"] == sum(d.targets.shape[0] for d in given)
    assert result.metrics["custom/scale:mean"] == 3.0
    another.forward_backward(*linear)
    one, two = (c.step(AdamParams()).metrics["grad_norm"] for c in (client, another))
    assert one == pytest.approx(two, rel=1e-4)
    assert one > 0


def test_the_gradient_points_the_same_way(client: Client, squares: Squares):
    """It cancels that of cross_entropy with the opposite weights."""
    given = data()
    result = client.forward_backward(*given, loss=LOSS_ID)
    for d, logprobs in zip(given, result.logprobs, strict=True):
        slope = d.inputs["scale"] * d.inputs["weights"] * logprobs
        client.forward_backward(Datum(d.tokens, d.targets, {"weights": slope}))
    left = client.step(AdamParams()).metrics["grad_norm"]
    client.forward_backward(*given, loss=LOSS_ID)
    assert left < 1e-3 * client.step(AdamParams()).metrics["grad_norm"]


def test_forward_alone_leaves_no_gradient(client: Client, squares: Squares):
    assert client.forward(*data(), loss=LOSS_ID).metrics["loss:sum"] > 0
    assert client.step(AdamParams()).metrics["grad_norm"] == 0


def test_a_datum_that_fails_fails_its_request_only(engine, client: Client, another: Client, squares: Squares):
    gate = threading.Event()
    engine.submit(CreateAdapter(client.model_id, LoraConfig(), ""), lambda _: gate.wait(10))  # holds the engine thread
    bad = client.send(ForwardBackward, data=data(scale=12.0), loss=LOSS_ID)
    good = another.send(ForwardBackward, data=data(), loss=LOSS_ID)
    gate.set()
    with pytest.raises(RequestError, match=r"'s:loss:0' of data\[1\] failed: thirteen") as error:
        bad.result(60)
    assert error.value.category == "user"
    assert good.result(60).metrics["loss:sum"] > 0
    client.nothing_is_left()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (DatumLossValue(float("nan"), np.zeros(4)), r"of data\[0\] is nan: value and gradient must be finite"),
        (DatumLossValue(1.0, np.array([0, 1, np.inf, 0])), r"of data\[0\] is 1.0: value and gradient must be finite"),
        (DatumLossValue(1.0, np.zeros(3)), r"gradient of shape \(3,\): expected \(4,\)"),
    ],
)
def test_values_that_cannot_be_used(client: Client, squares: Squares, monkeypatch, value, message):
    monkeypatch.setattr(Squares, "evaluate", lambda *_: value)
    with pytest.raises(RequestError, match=message):
        client.forward_backward(Datum(tokens(4), tokens(4), {"weights": ONES, "scale": ONES[:1]}), loss=LOSS_ID)


def test_a_loss_that_is_gone_when_its_turn_comes(client: Client):
    with pytest.raises(RequestError, match="'s:loss:0' was removed before"):
        client.forward_backward(*data(), loss=LOSS_ID)


@pytest.fixture
def bank(base) -> AdapterBank:
    """Three adapters of several ranks, a step away from the base model."""
    bank = AdapterBank(base.config, replicated(base.mesh), snapshot_bytes=0)
    for model_id, rank in (("a", 4), ("b", 2), ("c", 4)):
        adapter = bank.create(model_id, LoraConfig(rank=rank, seed=rank))
        adapter.gradient = jax.tree.map(jnp.ones_like, zero_gradient(adapter.weights))
        optim_step(adapter, AdamParams(learning_rate=0.01))
    return bank


def run_of(bank: AdapterBank, streams: Streams) -> PassRun:
    """Requests of ragged data for all adapters, of several losses, two of them for one adapter."""

    def ticket(model_id: str, seq_id: int, lengths: tuple[int, ...], loss: str = "cross_entropy", **inputs) -> Ticket:
        data = tuple(datum(n, n, **inputs) for n in lengths)
        return Ticket(ForwardBackward(model_id, seq_id, data, loss=loss), lambda _: None, seq_id)

    policy = {"logprobs": -5.0, "advantages": 1.0}
    tickets = [
        ticket("a", 1, (300, 20, 130, 7, 64)),
        ticket("b", 1, (90, 100, 128), "importance_sampling", **policy),
        ticket("a", 2, (140, 33), "gspo", **policy, sequence_ratio_mask=1.0),
        ticket("c", 1, (200, 60, 61)),
    ]
    return PassRun(tickets, bank, streams, Losses())


def finish(run: PassRun) -> list[int]:
    """How many batches each step ran."""
    return [len(batches) for batches in iter(run.step, [])]


@pytest.fixture
def streams_of(base) -> Iterator[Callable[[int], Streams]]:
    made: list[Streams] = []

    def make(count: int) -> Streams:
        made.append(Streams(Trainer(base.decoder, keep_tokens=512), tokens=256, count=count))
        return made[-1]

    yield make
    for streams in made:
        streams.close()


def gradients_of(bank: AdapterBank) -> dict[str, Gradient | None]:
    return {model_id: jax.device_get(bank[model_id].gradient) for model_id in "abc"}


def test_streams_change_no_result_and_no_gradient(bank, streams_of):
    results: list[list[ForwardBackwardResult]] = []
    gradients, batches = [], []
    for count in (1, 2):
        run = run_of(bank, streams_of(count))
        batches.append(finish(run))
        results.append(run.results())
        run.commit()
        gradients.append(gradients_of(bank))
        for model_id in "abc":
            bank[model_id].gradient = None
    assert set(batches[0]) == {1}
    assert 2 in batches[1]
    assert sum(batches[0]) == sum(batches[1]) > 2
    for one, two in zip(*results, strict=True):
        assert one.metrics == pytest.approx(two.metrics, rel=1e-5)
        for x, y in zip(one.logprobs, two.logprobs, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)

    def check(x: np.ndarray, y: np.ndarray) -> None:
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max())

    jax.tree.map(check, *gradients)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_a_second_run_adds_to_what_there_is(bank, streams_of):
    streams, seen = streams_of(2), []
    for _ in range(2):
        run = run_of(bank, streams)
        finish(run)
        run.commit()
        seen.append(gradients_of(bank))
    jax.tree.map(lambda once, twice: np.testing.assert_allclose(twice, 2 * once, rtol=1e-5, atol=1e-7), *seen)


def test_a_batch_that_fails_beside_another_changes_no_adapter(bank, streams_of, monkeypatch):
    streams, ended = streams_of(2), []
    weights = {model_id: bank[model_id].weights for model_id in "abc"}
    real = PassRun._run

    def failing(run: PassRun, batch: TrainBatch, gradients) -> None:
        real(run, batch, gradients)
        if not any(placement.item.adapter == 0 for placement in batch.placements):
            raise MemoryError("no room")
        ended.append(batch)

    monkeypatch.setattr(PassRun, "_run", failing)
    run = run_of(bank, streams)
    with pytest.raises(MemoryError, match="no room"):
        finish(run)
    assert ended, "others ran"
    assert gradients_of(bank) == dict.fromkeys("abc")
    assert all(bank[model_id].weights is weights[model_id] and bank[model_id].step == 1 for model_id in "abc")


def test_a_loss_that_fails_in_one_stream_leaves_no_gradient(client: Client, squares: Squares):
    """Its data fill two batches, and only the second has the datum that fails."""
    long = tuple(
        Datum(tokens(n, n), tokens(n, n), {"weights": np.ones(n, np.float32), "scale": ONES[:1] * s})
        for n, s in ((120, 1), (110, 13))
    )
    with pytest.raises(RequestError, match=r"data\[1\] failed: thirteen"):
        client.forward_backward(*long, loss=LOSS_ID)
    client.nothing_is_left()
    assert client.forward_backward(*long[:1], loss=LOSS_ID).metrics["loss:sum"] > 0
