"""Each loss against its formula: values, derivatives and metrics; and the registry."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest

from txlab.engine.losses import LOSSES, Loss, Losses, Terms, apply

RNG = np.random.default_rng(0)
LP = RNG.normal(-2, 1, (4, 9)).astype(np.float32)
Q = (LP + RNG.normal(0, 0.5, LP.shape) + np.array([[0.5], [-0.6], [0.1], [0]])).astype(np.float32)
A = RNG.normal(0, 1, LP.shape).astype(np.float32)
W = RNG.uniform(0, 2, LP.shape).astype(np.float32)
MASK = (RNG.random(LP.shape) < 0.6).astype(np.float32)
MASK[3] = 0
R = np.exp(LP - Q)
LOW = RNG.uniform(0.6, 0.9, LP.shape).astype(np.float32)
HIGH = RNG.uniform(1.05, 1.4, LP.shape).astype(np.float32)
POLICY = {"logprobs": Q, "advantages": A}
CLIP = {"clip_low_threshold": LOW, "clip_high_threshold": HIGH}


def sequence_ratio() -> np.ndarray:
    """One ratio per row, by hand: the geometric mean over the mask, 1 where it is empty."""
    rows = [
        np.exp(sum(d for d, m in zip(lp - q, mask, strict=True) if m) / mask.sum()) if mask.any() else 1.0
        for lp, q, mask in zip(LP, Q, MASK, strict=True)
    ]
    return np.broadcast_to(np.float32(rows)[:, None], LP.shape)


S = sequence_ratio()


def clipped(ratio: np.ndarray) -> np.ndarray:
    """Where the clip holds the objective down: good tokens above the upper threshold, bad ones below the lower."""
    return ((A > 0) & (ratio > HIGH)) | ((A < 0) & (ratio < LOW))


def clipped_loss(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PPO's loss of a ratio, and its derivative by lp where d ratio / d lp = ratio."""
    bound = np.where(A > 0, HIGH, LOW)
    return -np.where(clipped(ratio), bound, ratio) * A, np.where(clipped(ratio), 0, -ratio * A)


CASES = {  # loss: inputs, value, derivative by lp
    "cross_entropy": ({"weights": W}, -W * LP, -W),
    "importance_sampling": (POLICY, -R * A, -R * A),
    "ppo": (POLICY | CLIP, *clipped_loss(R)),
    "cispo": (POLICY | CLIP, -np.clip(R, LOW, HIGH) * LP * A, -np.clip(R, LOW, HIGH) * A),
    "dro": (POLICY | {"beta": 0.3}, -(LP * A - 0.15 * (LP - Q) ** 2), -(A - 0.3 * (LP - Q))),
    "gspo": (POLICY | CLIP | {"sequence_ratio_mask": MASK}, *clipped_loss(S)),
}


def inputs_of(case: str) -> dict[str, np.ndarray]:
    return {key: np.broadcast_to(np.float32(array), LP.shape) for key, array in CASES[case][0].items()}


def test_every_loss_has_a_case():
    assert set(CASES) == set(LOSSES)
    assert 0.1 < clipped(R).mean() < 0.9
    assert 0.1 < clipped(S).mean() < 0.9


@pytest.mark.parametrize("name", CASES)
def test_value_and_derivative(name):
    _, value, derivative = CASES[name]
    inputs = inputs_of(name)
    assert set(inputs) == set(LOSSES[name].inputs)
    function = LOSSES[name].function
    np.testing.assert_allclose(function(LP, inputs).loss, value, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda lp: function(lp, inputs).loss.sum())(LP)
    np.testing.assert_allclose(slope, derivative, rtol=1e-5, atol=1e-6)


RATIOS = {"ppo": (R, clipped(R)), "cispo": (R, (R < LOW) | (R > HIGH)), "gspo": (S, clipped(S))}


@pytest.mark.parametrize("name", sorted(set(CASES) - {"cross_entropy"}))
def test_metrics_of_a_policy_are_of_its_action_tokens(name):
    """A prompt token has neither advantage nor logprob, and counts for nothing."""
    inputs = inputs_of(name)
    prompt = np.zeros(LP.shape, bool)
    prompt[:, :3] = True
    for key in ("logprobs", "advantages", "sequence_ratio_mask"):
        if key in inputs:
            inputs[key] = np.where(prompt, 0, inputs[key]).astype(np.float32)
    terms = LOSSES[name].function(LP, inputs)
    action, x = ~prompt, LP - Q
    assert float(terms.metrics["action_tokens:sum"].sum()) == action.sum() == float(terms.counts.sum())
    expected = {"kl_k1:mean": -x, "kl_k3:mean": np.exp(x) - 1 - x, "entropy:mean": -LP}
    if name != "gspo":  # whose ratio differs with the mask
        ratio, clips = RATIOS.get(name, (R, None))
        expected |= {"ratio:mean": ratio} | ({} if clips is None else {"clip_fraction:mean": clips})
    for key, values in expected.items():
        got = float(terms.metrics[key].sum() / terms.counts.sum())
        assert got == pytest.approx(float(values[action].mean()), rel=1e-4), key


def test_gspo_reports_the_ratio_of_its_sequences():
    terms = LOSSES["gspo"].function(LP, inputs_of("gspo"))
    assert float(terms.metrics["ratio:mean"].mean()) == pytest.approx(S.mean(), rel=1e-5)
    assert float(terms.metrics["clip_fraction:mean"].mean()) == pytest.approx(clipped(S).mean(), rel=1e-5)


def test_padding_reaches_neither_loss_nor_gradient():
    """Even where a loss makes NaN of it."""
    loss = Loss("log", lambda lp, _: Terms(jax.numpy.log(-lp)))
    real = np.ones(LP.shape, bool)
    real[:, 5:] = False
    given = np.where(real, -np.abs(LP), 7)
    assert not apply(loss.function, given, {}, real)[0][:, 5:].any()
    values, slope = jax.value_and_grad(lambda lp: apply(loss.function, lp, {}, real)[1].loss.sum())(given)
    assert float(values) == pytest.approx(np.log(np.abs(LP[:, :5])).sum(), rel=1e-4)
    assert np.isfinite(slope).all()
    assert not slope[:, 5:].any()


def test_the_registry_keeps_what_is_built_in():
    losses, mine, other = Losses(), Loss("mine", LOSSES["ppo"].function), Loss("mine", LOSSES["dro"].function)
    losses.add(mine)
    assert losses.get("mine") is mine
    losses.add(other)
    assert losses.get("mine") is other
    assert losses.names() == (*LOSSES, "mine")
    losses.remove("mine")
    losses.remove("mine")
    assert losses.get("mine") is None
    for name in ("ppo", "custom", "stable_reinforce"):
        with pytest.raises(ValueError, match="built-in"):
            losses.add(Loss(name, mine.function))
    with pytest.raises(ValueError, match="built-in"):
        losses.remove("ppo")
    assert Losses().names() == tuple(LOSSES), "registries share nothing"


def test_the_registry_needs_no_jax():
    code = "import sys, txlab.engine.losses; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
