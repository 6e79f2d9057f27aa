"""Products of vectors and matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def dot(input: jax.Array, other: jax.Array) -> jax.Array:
    """Inner product of two vectors."""
    return _product(input, other, 1, 1)


def mv(input: jax.Array, vec: jax.Array) -> jax.Array:
    """Matrix times vector."""
    return _product(input, vec, 2, 1)


def mm(input: jax.Array, mat2: jax.Array) -> jax.Array:
    """Matrix times matrix."""
    return _product(input, mat2, 2, 2)


def bmm(input: jax.Array, mat2: jax.Array) -> jax.Array:
    """Matrices times matrices."""
    return _product(input, mat2, 3, 3)


def matmul(input: jax.Array, other: jax.Array) -> jax.Array:
    """Product of vectors, matrices or stacks of them."""
    return jnp.matmul(input, other)


def outer(input: jax.Array, vec2: jax.Array) -> jax.Array:
    """Products of all pairs of elements of two vectors."""
    return jnp.expand_dims(input, 1) * jnp.expand_dims(vec2, 0)


def einsum(equation: str, *operands: Any) -> jax.Array:
    """Sum of products by Einstein's convention, as an equation in letters."""
    return jnp.einsum(equation, *(operands[0] if isinstance(operands[0], list | tuple) else operands))


def _product(input: jax.Array, other: jax.Array, rank: int, other_rank: int) -> jax.Array:
    if (input.ndim, other.ndim) != (rank, other_rank):
        raise ValueError(f"a product of ranks {rank} and {other_rank}, not of shapes {input.shape} and {other.shape}")
    return jnp.matmul(input, other)


# Of torch and of Tensor alike.
OPS: Mapping[str, Callable[..., Any]] = {
    "dot": dot,
    "mv": mv,
    "mm": mm,
    "bmm": bmm,
    "matmul": matmul,
    "outer": outer,
}
