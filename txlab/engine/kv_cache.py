"""Room for the keys and values of the sequences that decode together, in a few sizes, and rows moved about in it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from txlab.models.attention import KVCache, LayerCache
from txlab.models.config import ModelConfig

MIN_WIDTH = 128
FEW_ROWS = 8


def width_bucket(tokens: int, rows: int) -> int:
    """Width of a cache for sequences of so many tokens, in few sizes, so that few programs are compiled.

    128, 256, 512 …; where many rows attend to all of it, also 192, 384 …
    """
    width = max(MIN_WIDTH, 1 << (tokens - 1).bit_length())
    between = width * 3 // 4
    return between if rows > FEW_ROWS and between > MIN_WIDTH and tokens <= between else width


def rows_bucket(rows: int, most: int) -> int:
    """Rows of a cache for so many sequences: 1, 2, 4, 8 …, at most ``most``."""
    return min(1 << (rows - 1).bit_length(), most)


def cache_size(cache: KVCache) -> tuple[int, int]:
    """Rows and width of a cache."""
    rows, _, width, _ = cache[0].v.shape
    return rows, width


def token_bytes(config: ModelConfig, dtype: jnp.dtype) -> int:
    """Memory of one token in one row."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize


def resize(cache: KVCache, keep: list[int], rows: int, width: int) -> KVCache:
    """A cache of another size whose first rows are the rows ``keep`` of the old one, as far as they reach."""
    source = np.zeros(rows, np.int32)
    source[: len(keep)] = keep
    return tuple(_resize(layer, source, width) for layer in cache)  # one by one: they are alike, and freed in turn


@partial(jax.jit, static_argnums=2)
def _resize(layer: LayerCache, source: jax.Array, width: int) -> LayerCache:
    k, v = layer.k[source, :, :, :width], layer.v[source, :, :width]  # (rows, Hkv, hd, C) and (rows, Hkv, C, hd)
    more = (0, width - v.shape[2])
    return LayerCache(jnp.pad(k, ((0, 0), (0, 0), (0, 0), more)), jnp.pad(v, ((0, 0), (0, 0), more, (0, 0))))


@partial(jax.jit, donate_argnums=0)
def copy_row(cache: KVCache, source: jax.Array, target: jax.Array) -> KVCache:
    """Row ``source`` written over row ``target``: a prompt that is there already is not computed again."""
    return jax.tree.map(lambda array: array.at[target].set(array[source]), cache)


@partial(jax.jit, static_argnums=2)
def take_row(cache: KVCache, row: jax.Array, width: int) -> KVCache:
    """The first ``width`` tokens of a row, as a cache of one row."""
    one = jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, row, 1), cache)
    return tuple(LayerCache(layer.k[..., :width], layer.v[:, :, :width]) for layer in one)


@partial(jax.jit, donate_argnums=0)
def put_row(cache: KVCache, row: jax.Array, part: KVCache) -> KVCache:
    """Write what ``take_row`` gave to the beginning of a row, as far as it reaches; the cache is at least as wide."""
    return jax.tree.map(lambda array, new: lax.dynamic_update_slice(array, new, (row, 0, 0, 0)), cache, part)
