"""What flows between the operations of an uploaded loss, and torch's rules for it.

Tensors are JAX arrays of float32, int32 or bool. Torch's float64 and int64 are taken as float32 and int32, so with
three types left torch's promotion (bool < int < float, whatever the ranks) is JAX's own. Python numbers, shapes and
slices stay what they are: they are known while a loss is traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Number = bool | int | float
Operand = jax.Array | Number
Dims = int | Sequence[int] | None

MAX_ELEMENTS = 2**26  # of any one tensor: 256 MiB of float32

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float32),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int32),
    "bool": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Placement:
    """A device, layout or memory format: accepted and without effect, as there is one of each."""


class Ranked(NamedTuple):
    """Result of max, min, sort and topk along a dimension."""

    values: jax.Array
    indices: jax.Array


def is_tensor(value: object) -> bool:
    """Tell arrays, traced ones too, from Python values."""
    return isinstance(value, jax.Array)


def is_floating(value: Operand) -> bool:
    """Tell whether a tensor or number is of floating point."""
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def floating(value: Operand) -> jax.Array:
    """Return a tensor of floating point, as functions such as exp make of integers."""
    return jnp.asarray(value) if is_floating(value) else jnp.asarray(value, jnp.float32)


def cast(value: Operand, dtype: np.dtype | None) -> jax.Array:
    """Return ``value`` as a tensor of ``dtype``; None keeps its own."""
    return jnp.asarray(value, dtype)


def axis(tensor: jax.Array, dim: int) -> int:
    """Return ``dim`` counted from the front; IndexError where there is no such one. A scalar counts as of rank 1."""
    rank = max(tensor.ndim, 1)
    if not -rank <= dim < rank:
        raise IndexError(f"dimension {dim} of a tensor of shape {tensor.shape}")
    return dim % rank


def axes(tensor: jax.Array, dim: Dims) -> tuple[int, ...]:
    """Return the dimensions that a reduction goes over: None and () are all of them."""
    if tensor.ndim == 0:
        return ()
    if dim is None or dim == () or dim == []:
        return tuple(range(tensor.ndim))
    return tuple(axis(tensor, d) for d in ([dim] if isinstance(dim, int) else dim))


def count(tensor: jax.Array, dim: Dims) -> int:
    """Return how many elements each result of a reduction is made of."""
    return math.prod(tensor.shape[a] for a in axes(tensor, dim))


def one_by_one(name: str) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Let a function take its sequence ``name`` as torch does: whole, by keyword, or one by one after the tensor."""

    def decorate(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        @wraps(function)
        def apply(*args: Any, **kwargs: Any) -> jax.Array:
            tensors = tuple(arg for arg in args if is_tensor(arg))
            if rest := args[len(tensors) :]:
                kwargs[name] = rest[0] if isinstance(rest[0], list | tuple) else rest
            return function(*tensors, **kwargs)

        return apply

    return decorate


def refuse_large(shape: Sequence[int]) -> None:
    """Raise ValueError for a tensor that a loss has no good use for."""
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"a tensor of shape {tuple(shape)} has more than {MAX_ELEMENTS} elements")
