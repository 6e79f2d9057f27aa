"""Operations that pick elements of a tensor. What an index out of range picks is NaN, as values raise nothing here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from txlab.engine.torch_ops.values import axis, cast

BOOL_INDEX = "an index of bool has a result whose size depends on values: use torch.where, or multiply by the mask"


def getitem(input: jax.Array, index: Any) -> jax.Array:
    """Index by integers, slices, None, an ellipsis and tensors of integers; what is out of range there picks NaN."""
    items = _spell_out(index if isinstance(index, tuple) else (index,), input.ndim)
    dims = iter(input.shape)
    for item in items:
        if item is not None:
            _check_index(item, next(dims))
    rest = tuple(item for item in items if not isinstance(item, int))  # torch picks by integers first
    picked = input[tuple(slice(None) if _is_list(item) else item for item in items)]
    if not any(_is_list(item) for item in rest):
        return picked
    among = tuple(jnp.asarray(item) if _is_list(item) else slice(None) for item in rest)
    return picked.at[among].get(mode="fill")


def gather(input: jax.Array, dim: int, index: jax.Array, *, sparse_grad: bool = False) -> jax.Array:
    """input[index] along one dimension, position by position in the others; out of range is NaN."""
    if index.ndim != input.ndim:
        raise ValueError(f"gather needs an index of rank {input.ndim}, not of shape {index.shape}")
    along = axis(input, dim)
    within = tuple(slice(None) if a == along else slice(size) for a, size in enumerate(index.shape))
    return jnp.take_along_axis(input[within], _integers(index), along, mode="fill")


def index_select(input: jax.Array, dim: int, index: jax.Array) -> jax.Array:
    """Take slices along a dimension; out of range is NaN."""
    return jnp.take(input, _integers(index), axis(input, dim), mode="fill")


def select(input: jax.Array, dim: int, index: int) -> jax.Array:
    """Return one slice of a dimension, which goes."""
    along = axis(input, dim)
    return getitem(input, (slice(None),) * along + (index,))


def narrow(input: jax.Array, dim: int, start: int, length: int) -> jax.Array:
    """Return ``length`` slices of a dimension."""
    along = axis(input, dim)
    start = start % input.shape[along] if start < 0 else start
    return lax.slice_in_dim(input, start, start + length, axis=along)


def pad(input: jax.Array, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> jax.Array:
    """Pad with a value, ``(before, after)`` for the last dimension first; negative numbers cut."""
    if mode != "constant":
        raise ValueError(f"pad in mode {mode!r}: there is 'constant'")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    widths = [(0, 0, 0)] * (input.ndim - len(pairs)) + [(before, after, 0) for before, after in reversed(pairs)]
    return lax.pad(input, cast(value or 0, input.dtype), widths)


def _spell_out(index: tuple[Any, ...], rank: int) -> list[Any]:
    """Replace the ellipsis, one at the end if there is none, by the slices that it stands for."""
    ellipses = [place for place, item in enumerate(index) if item is Ellipsis]
    taken = sum(item is not None and item is not Ellipsis for item in index)
    if taken > rank or len(ellipses) > 1:
        raise IndexError(f"{taken} indices and {len(ellipses)} ellipses for a tensor of rank {rank}")
    place = ellipses[0] if ellipses else len(index)
    return [*index[:place], *[slice(None)] * (rank - taken), *index[place + 1 :]]


def _check_index(item: Any, size: int) -> None:
    match item:
        case bool():
            raise TypeError(BOOL_INDEX)
        case int():
            if not -size <= item < size:
                raise IndexError(f"index {item} of a dimension of size {size}")
        case slice():
            if isinstance(item.step, int) and item.step < 1:
                raise ValueError("a slice goes forward: use flip")
        case jax.Array() | list():
            _integers(jnp.asarray(item))
        case _:
            raise TypeError(f"an index of {type(item).__name__}")


def _is_list(item: Any) -> bool:
    return isinstance(item, jax.Array | list)


def _integers(index: jax.Array) -> jax.Array:
    if index.dtype == np.bool_:
        raise TypeError(BOOL_INDEX)
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(f"an index of {index.dtype}: call .long() first")
    return index


# Of torch and of Tensor alike.
OPS: Mapping[str, Callable[..., Any]] = {
    "gather": gather,
    "index_select": index_select,
    "select": select,
    "narrow": narrow,
}
