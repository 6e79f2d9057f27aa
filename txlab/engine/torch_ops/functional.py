"""Activations and losses of torch.nn.functional."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from txlab.engine.torch_ops.pointwise import absolute, refuse_inplace, xlogy
from txlab.engine.torch_ops.values import floating

Reduction = Literal["none", "mean", "sum"]


def logsigmoid(input: jax.Array) -> jax.Array:
    """log(sigmoid(input))."""
    return jax.nn.log_sigmoid(floating(input))


def softplus(input: jax.Array, beta: float = 1.0, threshold: float = 20.0) -> jax.Array:
    """log(1 + exp(beta * input)) / beta; the input itself where beta * input is above the threshold."""
    scaled = beta * input
    return jnp.where(scaled > threshold, input, jax.nn.softplus(jnp.where(scaled > threshold, 0.0, scaled)) / beta)


def gelu(input: jax.Array, approximate: Literal["none", "tanh"] = "none") -> jax.Array:
    """``input * Phi(input)``, exactly or by tanh."""
    return jax.nn.gelu(input, approximate=approximate == "tanh")


def silu(input: jax.Array, inplace: bool = False) -> jax.Array:
    """``input * sigmoid(input)``."""
    refuse_inplace(inplace)
    return input * jax.nn.sigmoid(input)


def mse_loss(
    input: jax.Array,
    target: jax.Array,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    weight: jax.Array | None = None,
) -> jax.Array:
    """(input - target)^2."""
    _refuse_legacy(size_average, reduce, weight)
    return _reduce((input - target) ** 2, reduction)


def l1_loss(
    input: jax.Array,
    target: jax.Array,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    weight: jax.Array | None = None,
) -> jax.Array:
    """|input - target|."""
    _refuse_legacy(size_average, reduce, weight)
    return _reduce(absolute(input - target), reduction)


def huber_loss(
    input: jax.Array,
    target: jax.Array,
    reduction: Reduction = "mean",
    delta: float = 1.0,
    weight: jax.Array | None = None,
) -> jax.Array:
    """d^2 / 2 up to |d| = delta, then delta * (|d| - delta / 2)."""
    _refuse_legacy(None, None, weight)
    difference = absolute(input - target)
    far = delta * (difference - 0.5 * delta)
    return _reduce(jnp.where(difference <= delta, 0.5 * difference**2, far), reduction)


def smooth_l1_loss(
    input: jax.Array,
    target: jax.Array,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    beta: float = 1.0,
) -> jax.Array:
    """d^2 / (2 * beta) below |d| = beta, then |d| - beta / 2."""
    _refuse_legacy(size_average, reduce, None)
    if beta == 0:
        return l1_loss(input, target, reduction=reduction)
    return huber_loss(input, target, reduction, beta) / beta


def binary_cross_entropy_with_logits(
    input: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    pos_weight: jax.Array | None = None,
) -> jax.Array:
    """-target * log(sigmoid(input)) - (1 - target) * log(sigmoid(-input)), the first term times ``pos_weight``."""
    _refuse_legacy(size_average, reduce, None)
    positive = target if pos_weight is None else pos_weight * target
    loss = (1 - target) * input - (positive + 1 - target) * jax.nn.log_sigmoid(input)
    return _reduce(loss if weight is None else loss * weight, reduction)


def kl_div(
    input: jax.Array,
    target: jax.Array,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Literal["none", "mean", "sum", "batchmean"] = "mean",
    log_target: bool = False,
) -> jax.Array:
    """``target * (log(target) - input)``, pointwise; ``input`` is of logarithms, ``target`` if ``log_target``."""
    _refuse_legacy(size_average, reduce, None)
    loss = jnp.exp(target) * (target - input) if log_target else xlogy(target, target) - target * input
    if reduction == "batchmean":
        return jnp.sum(loss) / input.shape[0]
    return _reduce(loss, reduction)


def _reduce(loss: jax.Array, reduction: Reduction) -> jax.Array:
    match reduction:
        case "none":
            return loss
        case "mean":
            return jnp.mean(loss)
        case "sum":
            return jnp.sum(loss)
    raise ValueError(f"{reduction!r} is not a valid value for reduction")


def _refuse_legacy(size_average: bool | None, reduce: bool | None, weight: jax.Array | None) -> None:
    if size_average is not None or reduce is not None:
        raise ValueError("size_average and reduce are of old versions of torch: use reduction")
    if weight is not None:
        raise ValueError("the argument weight: multiply the loss of reduction='none' instead")


# The activations are C functions, whose home has another name.
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "torch._C._nn.log_sigmoid": logsigmoid,
    "torch._C._nn.softplus": softplus,
    "torch._C._nn.gelu": gelu,
    "torch.nn.functional.silu": silu,
    "torch.nn.functional.mse_loss": mse_loss,
    "torch.nn.functional.l1_loss": l1_loss,
    "torch.nn.functional.huber_loss": huber_loss,
    "torch.nn.functional.smooth_l1_loss": smooth_l1_loss,
    "torch.nn.functional.binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "torch.nn.functional.kl_div": kl_div,
}
