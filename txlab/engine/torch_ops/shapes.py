"""Operations that arrange, join and cut tensors, and tell their sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from txlab.engine.torch_ops.values import axis, one_by_one, refuse_large


@one_by_one("shape")
def reshape(input: jax.Array, shape: Sequence[int]) -> jax.Array:
    """The same elements in another shape; one size may be -1."""
    if not all(isinstance(size, int) for size in shape):
        raise TypeError(f"reshape and view take sizes, not {shape}")
    return jnp.reshape(input, tuple(shape))


def shaped_as(input: jax.Array, other: jax.Array) -> jax.Array:
    """The same elements in the shape of ``other``."""
    return jnp.reshape(input, other.shape)


def flatten(input: jax.Array, start_dim: int = 0, end_dim: int = -1) -> jax.Array:
    """Join neighbouring dimensions; a scalar becomes a vector of one."""
    input = jnp.atleast_1d(input)
    start, end = axis(input, start_dim), axis(input, end_dim) + 1
    return jnp.reshape(input, (*input.shape[:start], math.prod(input.shape[start:end]), *input.shape[end:]))


def squeeze(input: jax.Array, dim: int | Sequence[int] | None = None) -> jax.Array:
    """Drop dimensions of size 1, all or those among ``dim``."""
    dims = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    among = {axis(input, d) for d in dims} if input.ndim else set()
    return jnp.squeeze(input, tuple(a for a in among if input.shape[a] == 1))


def unsqueeze(input: jax.Array, dim: int) -> jax.Array:
    """Insert a dimension of size 1."""
    return jnp.expand_dims(input, dim)


def transpose(input: jax.Array, dim0: int, dim1: int) -> jax.Array:
    """Swap two dimensions."""
    return jnp.swapaxes(input, axis(input, dim0), axis(input, dim1)) if input.ndim else input


def t(input: jax.Array) -> jax.Array:
    """Transpose a matrix; leave a vector as it is."""
    if input.ndim > 2:
        raise ValueError(f"t() is for tensors of at most 2 dimensions, not of shape {input.shape}")
    return input.T


@one_by_one("dims")
def permute(input: jax.Array, dims: Sequence[int]) -> jax.Array:
    """Put the dimensions in another order."""
    return jnp.transpose(input, dims)


def movedim(input: jax.Array, source: int | Sequence[int], destination: int | Sequence[int]) -> jax.Array:
    """Move dimensions to other places."""
    return jnp.moveaxis(input, source, destination)


@one_by_one("size")
def expand(input: jax.Array, size: Sequence[int]) -> jax.Array:
    """Repeat dimensions of size 1, without a copy; -1 keeps a size."""
    own = (1,) * (len(size) - input.ndim) + input.shape
    shape = tuple(old if new == -1 else new for old, new in zip(own, size, strict=True))
    refuse_large(shape)
    return jnp.broadcast_to(input, shape)


def expand_as(input: jax.Array, other: jax.Array) -> jax.Array:
    """Expand to the shape of ``other``."""
    return expand(input, other.shape)


def broadcast_tensors(*tensors: jax.Array) -> list[jax.Array]:
    """Expand all to their common shape."""
    return jnp.broadcast_arrays(*tensors)


@one_by_one("repeats")
def repeat(input: jax.Array, repeats: Sequence[int]) -> jax.Array:
    """Tile: the whole tensor so many times along each dimension."""
    if len(repeats) < input.ndim:
        raise ValueError(f"repeat{tuple(repeats)} of a tensor of shape {input.shape}: one number for each dimension")
    return tile(input, repeats)


@one_by_one("dims")
def tile(input: jax.Array, dims: Sequence[int]) -> jax.Array:
    """Tile: the whole tensor so many times along its last dimensions."""
    refuse_large((*input.shape, *dims))
    return jnp.tile(input, dims)


def repeat_interleave(input: jax.Array, repeats: int, dim: int | None = None) -> jax.Array:
    """Repeat each element in its place; without ``dim`` of the flattened tensor."""
    if not isinstance(repeats, int):
        raise TypeError("repeat_interleave by a tensor has a size that depends on values")
    refuse_large((*input.shape, repeats))
    return jnp.repeat(input, repeats, dim)


def roll(input: jax.Array, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> jax.Array:
    """Shift cyclically; without ``dims`` the flattened tensor."""
    return jnp.roll(input, shifts, dims)


@one_by_one("dims")
def flip(input: jax.Array, dims: int | Sequence[int]) -> jax.Array:
    """Reverse the order along dimensions."""
    return jnp.flip(input, dims)


def diff(
    input: jax.Array, n: int = 1, dim: int = -1, prepend: jax.Array | None = None, append: jax.Array | None = None
) -> jax.Array:
    """Differences of neighbours, ``n`` times."""
    return jnp.diff(input, n, dim, prepend, append)


def tril(input: jax.Array, diagonal: int = 0) -> jax.Array:
    """Zeros above a diagonal."""
    return jnp.tril(input, diagonal)


def triu(input: jax.Array, diagonal: int = 0) -> jax.Array:
    """Zeros below a diagonal."""
    return jnp.triu(input, diagonal)


def diagonal(input: jax.Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> jax.Array:
    """The elements on a diagonal."""
    return jnp.diagonal(input, offset, dim1, dim2)


def stack(tensors: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    """Join along a new dimension."""
    return jnp.stack(tensors, dim)


def cat(tensors: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    """Join along a dimension that is there."""
    return jnp.concatenate(tensors, dim)


def split(input: jax.Array, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[jax.Array, ...]:
    """Cut into pieces of a size, the last one smaller, or of given sizes."""
    along, sizes = axis(input, dim), split_size_or_sections
    length = input.shape[along]
    if isinstance(sizes, int):
        edges = [*range(0, length, sizes), length]
    else:
        edges = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
        if edges[-1] != length:
            raise ValueError(f"pieces of {list(sizes)} do not make up a dimension of {length}")
    return tuple(lax.slice_in_dim(input, a, b, axis=along) for a, b in pairwise(edges))


def chunk(input: jax.Array, chunks: int, dim: int = 0) -> tuple[jax.Array, ...]:
    """Cut into at most so many equal pieces, the last one smaller."""
    return split(input, -(-input.shape[axis(input, dim)] // chunks), dim)


def unbind(input: jax.Array, dim: int = 0) -> tuple[jax.Array, ...]:
    """Return the slices along a dimension."""
    return tuple(jnp.moveaxis(input, axis(input, dim), 0))


def size(input: jax.Array, dim: int | None = None) -> tuple[int, ...] | int:
    """The shape, or one of its sizes."""
    return input.shape if dim is None else input.shape[dim]


def rank(input: jax.Array) -> int:
    """Number of dimensions."""
    return input.ndim


def numel(input: jax.Array) -> int:
    """Number of elements."""
    return input.size


# Of torch and of Tensor alike.
OPS: Mapping[str, Callable[..., Any]] = {
    "reshape": reshape,
    "flatten": flatten,
    "ravel": flatten,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "transpose": transpose,
    "swapaxes": transpose,
    "swapdims": transpose,
    "t": t,
    "permute": permute,
    "movedim": movedim,
    "tile": tile,
    "repeat_interleave": repeat_interleave,
    "roll": roll,
    "flip": flip,
    "diff": diff,
    "tril": tril,
    "triu": triu,
    "diagonal": diagonal,
    "split": split,
    "chunk": chunk,
    "unbind": unbind,
    "numel": numel,
}

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "broadcast_to": expand,
    "stack": stack,
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
}

METHODS: Mapping[str, Callable[..., Any]] = {
    "view": reshape,
    "view_as": shaped_as,
    "reshape_as": shaped_as,
    "expand": expand,
    "expand_as": expand_as,
    "broadcast_to": expand,
    "repeat": repeat,
    "size": size,
    "dim": rank,
    "ndimension": rank,
    "nelement": numel,
}
