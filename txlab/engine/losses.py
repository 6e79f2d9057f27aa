"""Every loss as one small pure function of the target logprobs, and the registry that names them.

A loss sees one device batch: ``logprobs`` (B, T) of the targets under the present weights, and its inputs as
float32 arrays of the same shape. Options such as clip thresholds arrive as inputs too (one value per token), so
that requests with different options share a program. It returns the elementwise loss (B, T); what is reported
and differentiated is the plain sum. Formulas: the Tinker documentation, "Losses".

The registry imports without JAX; the functions import it when they are traced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

    Inputs = Mapping[str, jax.Array]
    LossFn = Callable[[jax.Array, Inputs], jax.Array]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss: its function, the inputs each datum must or may bring, and its options with their defaults."""

    name: str
    function: LossFn
    required: tuple[str, ...] = ()
    optional: Mapping[str, float] = field(default_factory=dict)  # input -> value where a datum lacks it
    options: Mapping[str, float | None] = field(default_factory=dict)  # None: must be given

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all arrays that the function reads."""
        return (*self.required, *self.optional, *self.options)


def cross_entropy(logprobs: jax.Array, inputs: Inputs) -> jax.Array:
    """-w * lp."""
    return -inputs["weights"] * logprobs


def importance_sampling(logprobs: jax.Array, inputs: Inputs) -> jax.Array:
    """-r * A with r = exp(lp - q)."""
    return -_ratio(logprobs, inputs) * inputs["advantages"]


def ppo(logprobs: jax.Array, inputs: Inputs) -> jax.Array:
    """-min(r * A, clip(r, low, high) * A)."""
    import jax.numpy as jnp

    ratio, advantages = _ratio(logprobs, inputs), inputs["advantages"]
    clipped = jnp.clip(ratio, inputs["clip_low_threshold"], inputs["clip_high_threshold"])
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def cispo(logprobs: jax.Array, inputs: Inputs) -> jax.Array:
    """-stop_gradient(clip(r, low, high)) * lp * A."""
    import jax.numpy as jnp
    from jax import lax

    clipped = jnp.clip(_ratio(logprobs, inputs), inputs["clip_low_threshold"], inputs["clip_high_threshold"])
    return -lax.stop_gradient(clipped) * logprobs * inputs["advantages"]


def dro(logprobs: jax.Array, inputs: Inputs) -> jax.Array:
    """-(lp * A - beta / 2 * (lp - q)^2)."""
    difference = logprobs - inputs["logprobs"]
    return -(logprobs * inputs["advantages"] - 0.5 * inputs["beta"] * difference**2)


def _ratio(logprobs: jax.Array, inputs: Inputs) -> jax.Array:
    import jax.numpy as jnp

    return jnp.exp(logprobs - inputs["logprobs"])


_POLICY = ("logprobs", "advantages")

LOSSES: Mapping[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", cross_entropy, optional={"weights": 1.0}),
        Loss("importance_sampling", importance_sampling, _POLICY),
        Loss("ppo", ppo, _POLICY, options={"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
        Loss("cispo", cispo, _POLICY, options={"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}),
        Loss("dro", dro, _POLICY, options={"beta": None}),
    )
}
