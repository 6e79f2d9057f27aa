"""Operations that make tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from txlab.engine.torch_ops.values import Number, Operand, cast, one_by_one, refuse_large

DType = np.dtype | None


@one_by_one("size")
def zeros(size: Sequence[int], *, dtype: DType = None) -> jax.Array:
    """Zeros of float32 unless said otherwise."""
    return full(size, 0.0, dtype=dtype)


@one_by_one("size")
def ones(size: Sequence[int], *, dtype: DType = None) -> jax.Array:
    """Ones of float32 unless said otherwise."""
    return full(size, 1.0, dtype=dtype)


def full(size: Sequence[int], fill_value: Operand, *, dtype: DType = None) -> jax.Array:
    """One value everywhere, of its own type unless said otherwise."""
    refuse_large(size)
    return jnp.broadcast_to(cast(fill_value, dtype), tuple(size))


def zeros_like(input: jax.Array, *, dtype: DType = None) -> jax.Array:
    """Zeros of the shape of a tensor."""
    return full_like(input, 0, dtype=dtype)


def ones_like(input: jax.Array, *, dtype: DType = None) -> jax.Array:
    """Ones of the shape of a tensor."""
    return full_like(input, 1, dtype=dtype)


def full_like(input: jax.Array, fill_value: Operand, *, dtype: DType = None) -> jax.Array:
    """One value in the shape of a tensor."""
    return full(input.shape, fill_value, dtype=dtype or input.dtype)


@one_by_one("size")
def new_zeros(input: jax.Array, size: Sequence[int], *, dtype: DType = None) -> jax.Array:
    """Zeros of the type of a tensor."""
    return full(size, 0, dtype=dtype or input.dtype)


@one_by_one("size")
def new_ones(input: jax.Array, size: Sequence[int], *, dtype: DType = None) -> jax.Array:
    """Ones of the type of a tensor."""
    return full(size, 1, dtype=dtype or input.dtype)


def new_full(input: jax.Array, size: Sequence[int], fill_value: Operand, *, dtype: DType = None) -> jax.Array:
    """One value, of the type of a tensor."""
    return full(size, fill_value, dtype=dtype or input.dtype)


def arange(start: Number, end: Number | None = None, step: Number = 1, *, dtype: DType = None) -> jax.Array:
    """Numbers from ``start`` to before ``end``."""
    start, end = (0, start) if end is None else (start, end)
    refuse_large((math.ceil((end - start) / step),))
    return jnp.arange(start, end, step, dtype)


def linspace(start: Number, end: Number, steps: int, *, dtype: DType = None) -> jax.Array:
    """``steps`` numbers from ``start`` to ``end``, both included."""
    refuse_large((steps,))
    return jnp.linspace(start, end, steps, dtype=dtype)


def eye(n: int, m: int | None = None, *, dtype: DType = None) -> jax.Array:
    """The identity matrix."""
    refuse_large((n, n if m is None else m))
    return jnp.eye(n, m, dtype=dtype)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "zeros": zeros,
    "ones": ones,
    "full": full,
    "zeros_like": zeros_like,
    "ones_like": ones_like,
    "full_like": full_like,
    "arange": arange,
    "linspace": linspace,
    "eye": eye,
}

METHODS: Mapping[str, Callable[..., Any]] = {
    "new_zeros": new_zeros,
    "new_ones": new_ones,
    "new_full": new_full,
}
