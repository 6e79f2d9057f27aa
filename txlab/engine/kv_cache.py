"""Room for the keys and values of the sequences that decode together, in a few fixed sizes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from txlab.models.attention import KVCache
from txlab.models.config import ModelConfig

MIN_WIDTH = 256


def width_bucket(tokens: int) -> int:
    """Width of a cache for sequences of so many tokens: 256, 1024, 4096 … so that few programs are compiled."""
    width = MIN_WIDTH
    while width < tokens:
        width *= 4
    return width


def rows_bucket(rows: int, most: int) -> int:
    """Rows of a cache for so many sequences: 1, 8, 32, 128 …, at most ``most``."""
    size = 1
    while size < rows:
        size = 8 if size == 1 else size * 4
    return min(size, most)


def cache_size(cache: KVCache) -> tuple[int, int]:
    """Rows and width of a cache."""
    return cache.k.shape[1], cache.k.shape[3]


def cache_bytes(config: ModelConfig, rows: int, width: int, dtype: jnp.dtype) -> int:
    """Memory of such a cache."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
    return rows * width * per_token


def resize(cache: KVCache, keep: list[int], rows: int, width: int) -> KVCache:
    """A cache of another size whose first rows are the rows ``keep`` of the old one, as far as they reach."""
    source = np.zeros(rows, np.int32)
    source[: len(keep)] = keep
    return _resize(cache, source, width)


@partial(jax.jit, static_argnums=2)
def _resize(cache: KVCache, source: jax.Array, width: int) -> KVCache:
    def move(array: jax.Array) -> jax.Array:
        array = array[:, source, :, :width]  # (L, rows, Hkv, C, hd)
        return jnp.pad(array, ((0, 0), (0, 0), (0, 0), (0, width - array.shape[3]), (0, 0)))

    return KVCache(*map(move, cache))


@partial(jax.jit, donate_argnums=0)
def copy_row(cache: KVCache, source: jax.Array, target: jax.Array) -> KVCache:
    """Row ``source`` written over row ``target``: samples of one prompt share its prefill."""
    return KVCache(*(array.at[:, target].set(array[:, source]) for array in cache))
