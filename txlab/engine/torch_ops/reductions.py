"""Operations that take a dimension, or all of them, together: sums, extremes, spreads, scans and orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special

from txlab.engine.torch_ops.pointwise import absolute
from txlab.engine.torch_ops.values import (
    Dims,
    Ranked,
    axes,
    axis,
    cast,
    count,
    floating,
    is_floating,
)

DType = np.dtype | None


def sum(input: jax.Array, dim: Dims = None, keepdim: bool = False, *, dtype: DType = None) -> jax.Array:
    """Sum; of bools a count."""
    return jnp.sum(input, axes(input, dim), dtype, keepdims=keepdim)


def nansum(input: jax.Array, dim: Dims = None, keepdim: bool = False, *, dtype: DType = None) -> jax.Array:
    """Sum of what is not NaN."""
    return jnp.nansum(input, axes(input, dim), dtype, keepdims=keepdim)


def mean(input: jax.Array, dim: Dims = None, keepdim: bool = False, *, dtype: DType = None) -> jax.Array:
    """Mean of a floating tensor."""
    input = _only_floating("mean", cast(input, dtype))
    return jnp.mean(input, axes(input, dim), keepdims=keepdim)


def nanmean(input: jax.Array, dim: Dims = None, keepdim: bool = False, *, dtype: DType = None) -> jax.Array:
    """Mean of what is not NaN."""
    input = _only_floating("nanmean", cast(input, dtype))
    return jnp.nanmean(input, axes(input, dim), keepdims=keepdim)


def prod(input: jax.Array, dim: int | None = None, keepdim: bool = False, *, dtype: DType = None) -> jax.Array:
    """Product."""
    return jnp.prod(input, axes(input, dim), dtype, keepdims=keepdim)


def var(
    input: jax.Array, dim: Dims = None, unbiased: bool = True, keepdim: bool = False, *, correction: int | None = None
) -> jax.Array:
    """Sum of squared differences from the mean over ``n - correction``: 1 unless said otherwise."""
    if isinstance(dim, bool):  # var(unbiased)
        return var(input, None, dim)
    input = _only_floating("var and std", input)
    divisor = count(input, dim) - (int(unbiased) if correction is None else correction)
    centered = input - jnp.mean(input, axes(input, dim), keepdims=True)
    return jnp.true_divide(jnp.sum(centered**2, axes(input, dim), keepdims=keepdim), max(divisor, 0))


def std(
    input: jax.Array, dim: Dims = None, unbiased: bool = True, keepdim: bool = False, *, correction: int | None = None
) -> jax.Array:
    """Square root of ``var``, without gradient where it is 0."""
    return _root(var(input, dim, unbiased, keepdim, correction=correction))


def norm(
    input: jax.Array,
    p: float | str | None = 2,
    dim: Dims = None,
    keepdim: bool = False,
    out: None = None,
    dtype: DType = None,
) -> jax.Array:
    """Vector norm: the root of the sum of squares (2, "fro"), the sum (1) or the maximum (inf) of absolute values."""
    if out is not None:
        raise ValueError("the argument out: values cannot be changed in place")
    over, input = axes(input, dim), _only_floating("norm", cast(input, dtype))
    if p in (2, "fro", None):
        return _root(jnp.sum(input**2, over, keepdims=keepdim))
    if p == 1:
        return jnp.sum(absolute(input), over, keepdims=keepdim)
    if p == jnp.inf:
        return jnp.max(absolute(input), over, keepdims=keepdim)
    raise ValueError(f"the norm of order {p!r}: there are 1, 2 and inf")


def vector_norm(
    input: jax.Array, ord: float | None = 2, dim: Dims = None, keepdim: bool = False, *, dtype: DType = None
) -> jax.Array:
    """``norm`` by its name in torch.linalg."""
    return norm(input, ord, dim, keepdim, dtype=dtype)


def amax(input: jax.Array, dim: Dims = (), keepdim: bool = False) -> jax.Array:
    """Maximum; equal ones share the gradient."""
    return jnp.max(input, axes(input, dim), keepdims=keepdim)


def amin(input: jax.Array, dim: Dims = (), keepdim: bool = False) -> jax.Array:
    """Minimum; equal ones share the gradient."""
    return jnp.min(input, axes(input, dim), keepdims=keepdim)


def largest(
    input: jax.Array, dim: int | jax.Array | None = None, keepdim: bool = False, *, other: jax.Array | None = None
) -> jax.Array | Ranked:
    """max: of all; of two tensors; or along ``dim`` with indices, where the first of equal ones gets the gradient."""
    if isinstance(dim, jax.Array):
        return jnp.maximum(input, dim)
    if other is not None:
        return jnp.maximum(input, other)
    return jnp.max(input) if dim is None else _pick(input, dim, argmax(input, dim, True), keepdim)


def smallest(
    input: jax.Array, dim: int | jax.Array | None = None, keepdim: bool = False, *, other: jax.Array | None = None
) -> jax.Array | Ranked:
    """min, in the forms of max."""
    if isinstance(dim, jax.Array):
        return jnp.minimum(input, dim)
    if other is not None:
        return jnp.minimum(input, other)
    return jnp.min(input) if dim is None else _pick(input, dim, argmin(input, dim, True), keepdim)


def argmax(input: jax.Array, dim: int | None = None, keepdim: bool = False) -> jax.Array:
    """Index of the maximum, the first of equal ones."""
    return jnp.argmax(jnp.atleast_1d(input), _one(input, dim), keepdims=keepdim and input.ndim > 0)


def argmin(input: jax.Array, dim: int | None = None, keepdim: bool = False) -> jax.Array:
    """Index of the minimum, the first of equal ones."""
    return jnp.argmin(jnp.atleast_1d(input), _one(input, dim), keepdims=keepdim and input.ndim > 0)


def any(input: jax.Array, dim: Dims = None, keepdim: bool = False) -> jax.Array:
    """Tell whether one is not 0."""
    return jnp.any(input, axes(input, dim), keepdims=keepdim)


def all(input: jax.Array, dim: Dims = None, keepdim: bool = False) -> jax.Array:
    """Tell whether none is 0."""
    return jnp.all(input, axes(input, dim), keepdims=keepdim)


def count_nonzero(input: jax.Array, dim: Dims = None) -> jax.Array:
    """Count what is not 0."""
    return jnp.sum(input != 0, axes(input, dim))


def logsumexp(input: jax.Array, dim: Dims, keepdim: bool = False) -> jax.Array:
    """log(sum(exp(input)))."""
    return special.logsumexp(floating(input), axes(input, dim), keepdims=keepdim)


def softmax(input: jax.Array, dim: int, dtype: DType = None, *, _stacklevel: int = 3) -> jax.Array:
    """exp(input) over its sum along ``dim``."""
    return jax.nn.softmax(floating(cast(input, dtype)), axes(input, dim))


def log_softmax(input: jax.Array, dim: int, dtype: DType = None, *, _stacklevel: int = 3) -> jax.Array:
    """Logarithm of ``softmax``."""
    return jax.nn.log_softmax(floating(cast(input, dtype)), axes(input, dim))


def cumsum(input: jax.Array, dim: int, *, dtype: DType = None) -> jax.Array:
    """Running sum."""
    return jnp.cumsum(jnp.atleast_1d(input), axis(input, dim), dtype).reshape(input.shape)


def cumprod(input: jax.Array, dim: int, *, dtype: DType = None) -> jax.Array:
    """Running product."""
    return jnp.cumprod(jnp.atleast_1d(input), axis(input, dim), dtype).reshape(input.shape)


def logcumsumexp(input: jax.Array, dim: int) -> jax.Array:
    """Logarithm of the running sum of exponentials."""
    return lax.cumlogsumexp(jnp.atleast_1d(floating(input)), axis(input, dim)).reshape(input.shape)


def argsort(input: jax.Array, dim: int = -1, descending: bool = False, stable: bool = True) -> jax.Array:
    """Indices that sort, equal ones in their order."""
    order = jnp.argsort(jnp.atleast_1d(input), axis(input, dim), descending=descending, stable=True)
    return order.reshape(input.shape)


def sort(input: jax.Array, dim: int = -1, descending: bool = False, *, stable: bool = True) -> Ranked:
    """Sorted values and where they were."""
    return _pick(input, dim, argsort(input, dim, descending), keepdim=True)


def topk(input: jax.Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Ranked:
    """The k largest or smallest, in order."""
    order = argsort(input, dim, descending=largest)
    if input.ndim == 0 or not 0 <= k <= input.shape[dim]:
        raise ValueError(f"the top {k} of a tensor of shape {input.shape}")
    return _pick(input, dim, lax.slice_in_dim(order, 0, k, axis=axis(input, dim)), keepdim=True)


def _pick(input: jax.Array, dim: int, indices: jax.Array, keepdim: bool) -> Ranked:
    """Take the values at ``indices``, which have all dimensions of ``input``; without keepdim ``dim`` goes."""
    if input.ndim == 0:
        return Ranked(input, indices)
    along = axis(input, dim)
    ranked = Ranked(jnp.take_along_axis(input, indices, along), indices)
    return ranked if keepdim else Ranked(ranked.values.squeeze(along), ranked.indices.squeeze(along))


def _one(input: jax.Array, dim: int | None) -> int | None:
    return None if dim is None else axis(input, dim)


def _root(squares: jax.Array) -> jax.Array:
    """Square root whose gradient at 0 is 0."""
    positive = squares != 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def _only_floating(name: str, input: jax.Array) -> jax.Array:
    if not is_floating(input):
        raise TypeError(f"{name} of a tensor of {input.dtype}: call .float() first")
    return input


# Of torch and of Tensor alike.
OPS: Mapping[str, Callable[..., Any]] = {
    "sum": sum,
    "nansum": nansum,
    "mean": mean,
    "nanmean": nanmean,
    "prod": prod,
    "var": var,
    "std": std,
    "amax": amax,
    "amin": amin,
    "max": largest,
    "min": smallest,
    "argmax": argmax,
    "argmin": argmin,
    "any": any,
    "all": all,
    "count_nonzero": count_nonzero,
    "logsumexp": logsumexp,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "cumsum": cumsum,
    "cumprod": cumprod,
    "logcumsumexp": logcumsumexp,
    "sort": sort,
    "argsort": argsort,
    "topk": topk,
}

METHODS: Mapping[str, Callable[..., Any]] = {"norm": norm}
