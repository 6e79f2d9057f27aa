"""Each loss against its formula, values and derivatives."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from txlab.engine.losses import LOSSES

RNG = np.random.default_rng(0)
LP = RNG.normal(-2, 1, (4, 9)).astype(np.float32)
Q = (LP + RNG.normal(0, 0.5, LP.shape)).astype(np.float32)
A = RNG.normal(0, 1, LP.shape).astype(np.float32)
W = RNG.uniform(0, 2, LP.shape).astype(np.float32)
R = np.exp(LP - Q)
POLICY = {"logprobs": Q, "advantages": A}
CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
INSIDE = (np.clip(R, 0.8, 1.2) * A >= R * A) | ((R > 0.8) & (R < 1.2))

CASES = {  # loss: inputs, value, derivative by lp
    "cross_entropy": ({"weights": W}, -W * LP, -W),
    "importance_sampling": (POLICY, -R * A, -R * A),
    "ppo": (POLICY | CLIP, -np.minimum(R * A, np.clip(R, 0.8, 1.2) * A), np.where(INSIDE, -R * A, 0)),
    "cispo": (POLICY | CLIP, -np.clip(R, 0.8, 1.2) * LP * A, -np.clip(R, 0.8, 1.2) * A),
    "dro": (POLICY | {"beta": 0.3}, -(LP * A - 0.15 * (LP - Q) ** 2), -(A - 0.3 * (LP - Q))),
}


def test_every_loss_has_a_case():
    assert set(CASES) == set(LOSSES)


@pytest.mark.parametrize("name", CASES)
def test_value_and_derivative(name):
    inputs, value, derivative = CASES[name]
    inputs = {key: np.broadcast_to(np.float32(array), LP.shape) for key, array in inputs.items()}
    assert set(inputs) == set(LOSSES[name].inputs)
    function = LOSSES[name].function
    np.testing.assert_allclose(function(LP, inputs), value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda lp: function(lp, inputs).sum())(LP), derivative, rtol=1e-5, atol=1e-6)
