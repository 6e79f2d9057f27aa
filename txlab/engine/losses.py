"""Every loss as one small pure function of the target logprobs, and the registry that names them.

A ``Loss`` is traced. It sees ``logprobs`` of the targets under the present weights, 0 in padding, and its inputs as
float32 arrays of the same shape. Options such as clip thresholds arrive as inputs too (one value per token), so that
requests with different options share a program. What is reported and differentiated is the plain sum of its elements.
Losses of single positions see any (S,) of them, with K targets (S, K), and are fused with the head. A loss that looks
across positions sees (B, T), one datum a row.

A ``DatumLoss`` runs on the host, datum by datum, between the forward and the backward pass.

Formulas: the Tinker documentation, "Losses"; GSPO: arXiv:2507.18071, equations 11 to 14. The module imports without
JAX; the functions import it when they are traced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import jax

    Inputs = Mapping[str, jax.Array]


class Terms(NamedTuple):
    """What a loss computes, elementwise in the shape of its logprobs.

    ``metrics`` are named ``<name>:sum`` or ``<name>:mean``; a mean is the sum of its values by that of ``counts``.
    """

    loss: jax.Array
    metrics: Mapping[str, jax.Array] = {}
    counts: jax.Array | None = None


LossFn = Callable[["jax.Array", "Inputs"], Terms]


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """A loss that JAX traces: its function, the inputs that a datum must or may bring, and its options.

    Compared by identity: programs are compiled for this very loss, so a new one of the same name gets new programs.
    """

    name: str
    function: LossFn
    required: tuple[str, ...] = ()
    optional: Mapping[str, float] = field(default_factory=dict)  # input -> value where a datum lacks it
    options: Mapping[str, float | None] = field(default_factory=dict)  # of loss_fn_config; None: must be given
    per_token: tuple[str, ...] = ()  # options that a datum may bring as inputs, which then count
    many_targets: bool = False  # takes K targets per position
    gate: str | None = None  # an input without which, at 0, a position has neither loss nor gradient
    alone: bool = False  # looks across positions: it sees one datum a row, and is evaluated between the two passes

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all arrays that the function reads."""
        return (*self.required, *self.optional, *self.options)

    @property
    def datum_inputs(self) -> tuple[str, ...]:
        """Names of what a datum may bring."""
        return (*self.required, *self.optional, *self.per_token)


@dataclass(frozen=True, slots=True, eq=False)
class DatumLossValue:
    """The loss of one datum, its gradient by the logprobs (their shape), and metrics ``<name>:sum`` or ``:mean``."""

    loss: float
    gradient: np.ndarray
    metrics: Mapping[str, float] = field(default_factory=dict)


class DatumLoss(Protocol):
    """A loss evaluated on the host, one datum at its exact length at a time."""

    @property
    def name(self) -> str:
        """What requests call it."""
        ...

    @property
    def rank(self) -> int:
        """Of the logprobs: 1 for one target per position, 2 for K."""
        ...

    @property
    def inputs(self) -> Mapping[str, int]:
        """Rank (0, 1 or 2) of every input that a datum must bring, logprobs left out."""
        ...

    def evaluate(self, logprobs: np.ndarray, inputs: Mapping[str, np.ndarray]) -> DatumLossValue:
        """Loss and gradient at float32 ``logprobs`` (N,) or (N, K), from float32 or int64 inputs of the named ranks.

        ValueError, or any exception, where it cannot be computed: it fails the request of this datum.
        """
        ...


class Losses:
    """The losses by name: those that are built in, and what is added. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._losses: dict[str, Loss | DatumLoss] = dict(LOSSES)

    def add(self, loss: Loss | DatumLoss) -> None:
        """Make a loss known, in place of one added under the same name. ValueError for a built-in name."""
        check_name(loss.name)
        with self._lock:
            self._losses[loss.name] = loss

    def remove(self, name: str) -> None:
        """Forget an added loss, if it is there. ValueError for a built-in one."""
        check_name(name)
        with self._lock:
            self._losses.pop(name, None)

    def get(self, name: str) -> Loss | DatumLoss | None:
        """Find a loss."""
        with self._lock:
            return self._losses.get(name)

    def names(self) -> tuple[str, ...]:
        """What a request may name as loss_fn: all but the losses that run on the host, which go by their ids."""
        with self._lock:
            return tuple(name for name, loss in self._losses.items() if isinstance(loss, Loss))


def check_name(name: str) -> None:
    """Raise ValueError where an added loss may not have this name."""
    if name in LOSSES or name in REFUSED or name == "custom":
        raise ValueError(f"{name!r} is the name of a built-in loss: choose another one")


def apply(function: LossFn, logprobs: jax.Array, inputs: Inputs, real: jax.Array) -> tuple[jax.Array, Terms]:
    """Logprobs, and the terms of each position, all of them 0 where ``real`` is False.

    ``logprobs`` has the shape of ``real``, or an axis K after it, over which terms are summed. What a loss makes of
    padding, NaN included, reaches neither its sum nor its gradient.
    """
    import jax
    import jax.numpy as jnp

    many = logprobs.ndim > real.ndim
    logprobs = jnp.where(real[..., None] if many else real, logprobs, 0.0)
    terms = function(logprobs, inputs)
    if many:
        terms = jax.tree.map(lambda x: x.sum(axis=-1), terms)
    return logprobs, jax.tree.map(lambda x: jnp.where(real, x, 0.0), terms)


def fused(kind: jax.Array, logprobs: jax.Array, inputs: Inputs) -> Terms:
    """The loss number ``kind`` () int32 of FUSED, so that one program serves them all.

    ``inputs`` holds FUSED_INPUTS; metrics are those of all, 0 where a loss has none. K targets: cross_entropy alone.
    """
    import jax.numpy as jnp
    from jax import lax

    zero = jnp.zeros_like(logprobs)

    def complete(loss: Loss) -> Callable[[jax.Array], Terms]:
        def evaluate(logprobs: jax.Array) -> Terms:
            terms = loss.function(logprobs, inputs)
            metrics = {name: jnp.asarray(terms.metrics.get(name, zero), jnp.float32) for name in names}
            return Terms(terms.loss, metrics, zero if terms.counts is None else terms.counts)

        return evaluate

    if logprobs.ndim > 1:
        return FUSED[0].function(logprobs, inputs)
    names = sorted(frozenset().union(*(metric_names(loss) for loss in FUSED)))
    return lax.switch(kind, [complete(loss) for loss in FUSED], logprobs)


@lru_cache
def metric_names(loss: Loss) -> frozenset[str]:
    """The metrics of a fused loss."""
    import jax

    one = jax.ShapeDtypeStruct((1,), np.float32)
    return frozenset(jax.eval_shape(loss.function, one, dict.fromkeys(loss.inputs, one)).metrics)


def fused_kind(loss: Loss) -> int:
    """Number of a loss in FUSED."""
    return FUSED.index(loss)


def cross_entropy(logprobs: jax.Array, inputs: Inputs) -> Terms:
    """-w * lp."""
    weights = inputs["weights"]
    return Terms(-weights * logprobs, {"weights:sum": weights})


def importance_sampling(logprobs: jax.Array, inputs: Inputs) -> Terms:
    """-r * A with r = exp(lp - q)."""
    ratio = _ratio(logprobs, inputs)
    return _policy(-ratio * inputs["advantages"], logprobs, inputs, ratio)


def ppo(logprobs: jax.Array, inputs: Inputs) -> Terms:
    """-min(r * A, clip(r, low, high) * A)."""
    return _clipped_surrogate(_ratio(logprobs, inputs), logprobs, inputs)


def gspo(logprobs: jax.Array, inputs: Inputs) -> Terms:
    """PPO with the ratio s of the sequence: log s is the mean of lp - q over ``sequence_ratio_mask``.

    Its gradient goes through each token's own lp: the ratio is stop_gradient(s) * exp(lp - stop_gradient(lp)).
    """
    import jax.numpy as jnp
    from jax import lax

    mask = inputs["sequence_ratio_mask"]
    weight = mask.sum(axis=-1, keepdims=True)  # (B, 1)
    difference = (mask * (logprobs - inputs["logprobs"])).sum(axis=-1, keepdims=True)
    sequence = jnp.exp(difference / jnp.where(weight > 0, weight, 1.0))
    ratio = lax.stop_gradient(sequence) * jnp.exp(logprobs - lax.stop_gradient(logprobs))
    return _clipped_surrogate(ratio, logprobs, inputs)


def cispo(logprobs: jax.Array, inputs: Inputs) -> Terms:
    """-stop_gradient(clip(r, low, high)) * lp * A."""
    from jax import lax

    ratio = _ratio(logprobs, inputs)
    clipped = _clip(ratio, inputs)
    loss = -lax.stop_gradient(clipped) * logprobs * inputs["advantages"]
    return _policy(loss, logprobs, inputs, ratio, clipped != ratio)


def dro(logprobs: jax.Array, inputs: Inputs) -> Terms:
    """-(lp * A - beta / 2 * (lp - q)^2)."""
    difference = logprobs - inputs["logprobs"]
    loss = -(logprobs * inputs["advantages"] - 0.5 * inputs["beta"] * difference**2)
    return _policy(loss, logprobs, inputs, _ratio(logprobs, inputs))


def _ratio(logprobs: jax.Array, inputs: Inputs) -> jax.Array:
    import jax.numpy as jnp

    return jnp.exp(logprobs - inputs["logprobs"])


def _clip(ratio: jax.Array, inputs: Inputs) -> jax.Array:
    import jax.numpy as jnp

    return jnp.clip(ratio, inputs["clip_low_threshold"], inputs["clip_high_threshold"])


def _clipped_surrogate(ratio: jax.Array, logprobs: jax.Array, inputs: Inputs) -> Terms:
    """PPO's loss of any ratio (arXiv:1707.06347, equation 7)."""
    import jax.numpy as jnp

    plain, clipped = ratio * inputs["advantages"], _clip(ratio, inputs) * inputs["advantages"]
    return _policy(-jnp.minimum(plain, clipped), logprobs, inputs, ratio, clipped < plain)


def _policy(
    loss: jax.Array, logprobs: jax.Array, inputs: Inputs, ratio: jax.Array, clipped: jax.Array | None = None
) -> Terms:
    """Add the metrics of a policy loss: means over its action tokens, where advantages or logprobs are not zero.

    With x = lp - q of tokens drawn from q, ``kl_k1`` = -x and ``kl_k3`` = exp(x) - 1 - x estimate KL(q, p) without
    bias (J. Schulman, "Approximating KL Divergence", 2020); ``entropy`` = -lp is exact in the mean where p is q.
    """
    import jax.numpy as jnp

    action = (inputs["advantages"] != 0) | (inputs["logprobs"] != 0)
    difference = logprobs - inputs["logprobs"]
    values = {
        "ratio:mean": ratio,
        "kl_k1:mean": -difference,
        "kl_k3:mean": jnp.expm1(difference) - difference,
        "entropy:mean": -logprobs,
        "action_tokens:sum": action,
    }
    if clipped is not None:
        values["clip_fraction:mean"] = clipped
    metrics = {name: jnp.where(action, value, 0.0) for name, value in values.items()}
    return Terms(loss, metrics, action.astype(jnp.float32))


_POLICY = ("logprobs", "advantages")
_CLIP = ("clip_low_threshold", "clip_high_threshold")
_CISPO_CLIP = {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
_PPO_CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}

LOSSES: Mapping[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", cross_entropy, optional={"weights": 1.0}, many_targets=True, gate="weights"),
        Loss("importance_sampling", importance_sampling, _POLICY, gate="advantages"),
        Loss("ppo", ppo, _POLICY, options=_PPO_CLIP, per_token=_CLIP, gate="advantages"),
        Loss("cispo", cispo, _POLICY, options=_CISPO_CLIP, per_token=_CLIP, gate="advantages"),
        Loss("dro", dro, _POLICY, options={"beta": None}),
        Loss("gspo", gspo, (*_POLICY, "sequence_ratio_mask"), options=_PPO_CLIP, per_token=_CLIP, alone=True),
    )
}

FUSED: tuple[Loss, ...] = tuple(loss for loss in LOSSES.values() if not loss.alone)
"""Losses of single positions; with the head they make one program. The first is linear in the logprobs."""
FUSED_INPUTS: tuple[str, ...] = tuple(dict.fromkeys(name for loss in FUSED for name in loss.inputs))

REFUSED: Mapping[str, str] = {
    "stable_reinforce": "this server has neither its formula nor what it needs of each sample; "
    "use importance_sampling, ppo, cispo or gspo (recipes of the cookbook: loss_fn=importance_sampling)",
}
