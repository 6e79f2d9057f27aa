"""The user's own JAX functions as losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine.test_passes import LOSS_ID
from tests.engine.tools import Client, datum
from txlab.engine.losses import DatumLossValue
from txlab.engine.requests import AdamParams, Datum, RequestError
from txlab.engine.user_losses import LossError, user_loss

POLICY = ("logprobs", "advantages")


def rl_data() -> list[Datum]:
    rng = np.random.default_rng(0)
    return [
        datum(n, n, logprobs=rng.normal(-5.5, 0.3, n), advantages=rng.normal(size=n), mask=np.arange(n) > 2)
        for n in (9, 30, 14, 5)
    ]


def ppo(logprobs, inputs, low, high):
    ratio, advantages = jnp.exp(logprobs - inputs["logprobs"]), inputs["advantages"]
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, low, high) * advantages)


def leashed(logprobs, inputs, beta):
    """Normalised by length: looks across positions."""
    mask = inputs["mask"]
    distance = logprobs - inputs["logprobs"]
    loss = beta * distance**2 - logprobs * inputs["advantages"]
    metrics = {"distance": (distance * mask).sum() / mask.sum(), "kept:sum": mask.sum()}
    return (loss * mask).sum() / mask.sum(), metrics


class Leashed:
    """The same in NumPy, with the gradient by hand."""

    name, rank = LOSS_ID, 1
    inputs: ClassVar = {"logprobs": 1, "advantages": 1, "mask": 1}

    def evaluate(self, logprobs, inputs):
        mask, advantages, distance = inputs["mask"], inputs["advantages"], logprobs - inputs["logprobs"]
        loss = (0.3 * distance**2 - logprobs * advantages) * mask / mask.sum()
        metrics = {"distance:mean": float((distance * mask).sum() / mask.sum()), "kept:sum": float(mask.sum())}
        return DatumLossValue(float(loss.sum()), (0.6 * distance - advantages) * mask / mask.sum(), metrics)


def norm(client: Client) -> float:
    return client.step(AdamParams()).metrics["grad_norm"]


def test_one_value_per_token(client: Client, another: Client):
    """The user's own PPO is ours, with other thresholds too."""
    client.engine.losses.add(user_loss("mine", ppo, POLICY, options={"low": 0.8, "high": 1.2}))
    given = [Datum(d.tokens, d.targets, {k: d.inputs[k] for k in POLICY}) for d in rl_data()]
    for mine, ours in (({}, {}), ({"high": 1.05}, {"clip_high_threshold": 1.05})):
        one = client.forward_backward(*given, loss="mine", loss_config=mine).metrics["loss:sum"]
        two = another.forward_backward(*given, loss="ppo", loss_config=ours).metrics["loss:sum"]
        assert one == pytest.approx(two, rel=1e-4)
        assert norm(client) == pytest.approx(norm(another), rel=1e-4)


def test_one_value_per_datum(client: Client, another: Client):
    losses = client.engine.losses
    losses.add(user_loss("leashed", leashed, POLICY, options={"beta": 0.1}))
    losses.add(Leashed())
    traced = client.forward_backward(*rl_data(), loss="leashed", loss_config={"beta": 0.3}).metrics
    by_hand = another.forward_backward(*rl_data(), loss=LOSS_ID).metrics
    losses.remove(LOSS_ID)
    assert traced == pytest.approx(by_hand, rel=1e-4)
    assert traced["kept:sum"] == sum(len(d.tokens) - 3 for d in rl_data())
    assert norm(client) == pytest.approx(norm(another), rel=1e-4)


def test_what_a_datum_leaves_out(client: Client):
    def weighted(logprobs, inputs):
        return -(logprobs * inputs["w"] * inputs["mask"]).sum()

    client.engine.losses.add(user_loss("weighted", weighted, optional={"w": 3.0}))
    plain, heavy = datum(5), datum(5, w=2.0, mask=[1, 0, 0, 0, 0])
    result = client.forward(plain, heavy, loss="weighted")
    expected = -3 * result.logprobs[0].sum() - 2 * result.logprobs[1][0]
    assert result.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)


def test_the_same_name_again_replaces(client: Client):
    values = []
    for factor in (1.0, 2.0):
        client.engine.losses.add(user_loss("again", lambda lp, _, factor=factor: -factor * lp))
        values.append(client.forward(datum(5), loss="again").metrics["loss:sum"])
    assert values[1] == pytest.approx(2 * values[0])


def test_a_datum_that_makes_it_infinite_is_named(client: Client):
    client.engine.losses.add(user_loss("inverse", lambda lp, inputs: -lp / inputs["x"], ("x",)))
    with pytest.raises(RequestError, match=r"the inverse loss of data\[1\] is inf"):
        client.forward_backward(datum(4, x=1.0), datum(4, x=0.0), loss="inverse")
    client.nothing_is_left()


def twice(logprobs, inputs):
    return logprobs, inputs, logprobs


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no function": (lambda: user_loss("x", 3), "expected a function, got int"),
    "builtin": (lambda: user_loss("ppo", ppo), "'ppo' is the name of a built-in loss"),
    "name": (lambda: user_loss("a:b", ppo), "'a:b' is no name"),
    "parameters": (lambda: user_loss("x", ppo, POLICY), r"fn\(logprobs, inputs, \*\*options\), but missing .* 'low'"),
    "inputs is text": (lambda: user_loss("x", ppo, "logprobs"), "inputs is the text 'logprobs': expected a list"),
    "named twice": (lambda: user_loss("x", ppo, ["a"], {"a": 1}), "'a' is named twice"),
    "default": (lambda: user_loss("x", ppo, ["a"], {"b": float("nan")}), "default of 'b' is nan"),
    "targets": (lambda: user_loss("x", ppo, ["target_tokens"]), "target_tokens cannot be read"),
    "mask": (lambda: user_loss("x", ppo, options={"mask": 1}), "'mask' is an input"),
    "not declared": (lambda: user_loss("x", lambda lp, i: lp * i["w"]), r"reads inputs\['w'\], which is neither"),
    "two not declared": (lambda: user_loss("x", lambda lp, i: lp * i["v"] * i["w"]), r"reads inputs\['v'\]"),
    "own KeyError": (lambda: user_loss("x", lambda lp, i: lp * {"a": 1}["b"]), "fails on a datum .*: KeyError: 'b'"),
    "numpy": (lambda: user_loss("x", lambda lp, i: np.exp(lp)), "use jax.numpy in place of numpy"),
    "if": (lambda: user_loss("x", lambda lp, i: lp if lp.sum() > 0 else -lp), "jnp.where in place of if"),
    "raises": (lambda: user_loss("x", lambda lp, i: 1 / 0), "fails on a datum of 7 tokens: ZeroDivisionError"),
    "text": (lambda: user_loss("x", lambda lp, i: "no"), "fails on a datum of 7 tokens"),
    "tuple": (lambda: user_loss("x", twice), r"a tuple that is not \(loss, dict of metrics\)"),
    "list": (lambda: user_loss("x", lambda lp, i: [lp]), "returns list from logprobs"),
    "shape": (lambda: user_loss("x", lambda lp, i: jnp.stack([lp, lp])), r"returns float32\[2, 7\] from logprobs"),
    "integers": (lambda: user_loss("x", lambda lp, i: 3), r"returns int32\[\]"),
    "metric": (lambda: user_loss("x", lambda lp, i: (lp, {"a": lp})), r"metric 'a' is float32\[7\]: expected a scalar"),
    "metric name": (lambda: user_loss("x", lambda lp, i: (lp, {"loss:sum": 1.0})), "no metric can be named 'loss:sum'"),
    "metric value": (
        lambda: user_loss("x", lambda lp, i: (lp, {"a": jnp.log(lp.sum())})),
        "metric 'a:mean' of x is nan",
    ),
    "nan": (lambda: user_loss("x", lambda lp, i: jnp.log(lp)), "x is nan on sample data"),
    "gradient": (lambda: user_loss("x", lambda lp, i: jnp.sqrt(lp * 0)), "gradient of x is not finite"),
    "no gradient": (lambda: user_loss("x", lambda lp, i: i["mask"]), "x has no gradient"),
    "padding": (lambda: user_loss("x", lambda lp, i: -lp.mean()), r"depends on padding: .* inputs\['mask'\]"),
    "padding, elementwise": (lambda: user_loss("x", lambda lp, i: lp.mean() - 2 * lp), "depends on padding"),
    "padding in metrics": (lambda: user_loss("x", lambda lp, i: (-lp, {"a": lp.mean()})), "depends on padding"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_function_is_refused_at_once(case):
    register, message = BAD[case]
    with pytest.raises(LossError, match=message):
        register()
