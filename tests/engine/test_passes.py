"""Losses that are evaluated on the host, between two passes over the model."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.engine.tools import Client, tokens
from txlab.engine.engine import Engine
from txlab.engine.losses import DatumLossValue
from txlab.engine.requests import AdamParams, CreateAdapter, Datum, ForwardBackward, RequestError
from txlab.lora.state import LoraConfig

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
    assert client.step(AdamParams()).metrics["grad_norm"] == 0


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
