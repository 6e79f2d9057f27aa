"""Rotary positions and grouped-query attention: over packed segments, and over a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from txlab.models.config import ModelConfig, RopeScaling

Cache = Any  # any pytree of arrays
Attend = Callable[[int | Array, Array, Array, Array, Cache], tuple[Array, Cache]]
"""``attend(layer_index, q, k, v, cache) -> (out, cache)``.

q and out are (B, T, Hq, hd); k and v are (B, T, Hkv, hd), all after rotation; ``layer_index``: an int or () int32.
"""

MASKED = -1e30  # finite, so that a row without keys gives an average and not NaN


def rope_angles(config: ModelConfig, positions: Array) -> tuple[Array, Array]:
    """(B, T) int32 positions -> cosines and sines, each (B, T, hd/2) float32."""
    frequencies, scale = rope_frequencies(config)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate (B, T, H, hd) by (B, T, hd/2); the two halves of hd are the pairs, as in Hugging Face's weights."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate((low * cos - high * sin, high * cos + low * sin), axis=-1).astype(x.dtype)


def rope_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Radians per token, (hd/2,) float32, and the factor on cosines and sines."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    base = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    match config.rope_scaling:
        case None:
            return base, 1.0
        case RopeScaling(kind="linear", factor=factor):
            return base / np.float32(factor), 1.0
        case RopeScaling(kind="factors", factors=factors):
            return base / np.asarray(factors, np.float32), 1.0
        case RopeScaling(kind="llama3") as scaling:
            return _llama3(base, scaling), 1.0
        case scaling:
            return _yarn(base, scaling, config), scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0


def _llama3(base: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Long wavelengths divided by ``factor``, short ones kept, a smooth blend between (Llama 3.1)."""
    wavelengths = 2 * math.pi / base
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((scaling.original_context / wavelengths - low) / (high - low), 0.0, 1.0)
    return (kept * base + (1 - kept) * base / scaling.factor).astype(np.float32)


def _yarn(base: np.ndarray, scaling: RopeScaling, config: ModelConfig) -> np.ndarray:
    """Dimensions that turn often keep their frequency, slow ones are interpolated (YaRN, arXiv:2309.00071)."""
    dims = config.head_dim

    def dimension(rotations: float) -> float:
        turns = scaling.original_context / (rotations * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    slow = np.clip((np.arange(dims // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return (slow * base / scaling.factor + (1 - slow) * base).astype(np.float32)


class LayerCache(NamedTuple):
    """Keys (rotated) and values of S sequences of at most C tokens, of one layer.

    Heads come before tokens, and keys lie transposed: so both products of attention read memory in order.
    """

    k: Array  # (S, Hkv, hd, C)
    v: Array  # (S, Hkv, C, hd)


KVCache = tuple[LayerCache, ...]  # one for each layer, so that a step reads each where it lies


def make_cache(config: ModelConfig, sequences: int, context: int, dtype: DTypeLike = jnp.float32) -> KVCache:
    """An empty cache of ``sequences`` times ``context`` tokens."""
    k = (sequences, config.num_kv_heads, config.head_dim, context)
    v = (sequences, config.num_kv_heads, context, config.head_dim)
    return tuple(LayerCache(jnp.zeros(k, dtype), jnp.zeros(v, dtype)) for _ in range(config.num_layers))


def cached_attention(positions: Array, rows: Array | None = None) -> Attend:
    """Attention over a KVCache: writes the new keys and values at ``positions``, then looks at all up to them.

    ``positions`` (B, T) int32 are places in the cache; what lies outside it is not written (padding).
    ``rows`` (B,) int32 says which sequence of the cache each batch row is; None: row b is sequence b, of all S. Rows
    may name one sequence several times: each sees what all of them write.
    """

    def attend(layer: int | Array, q: Array, k: Array, v: Array, cache: KVCache) -> tuple[Array, KVCache]:
        assert isinstance(layer, int)
        own = _write(cache[layer], k, v, positions, rows)
        keys, values = own if rows is None else (own.k[rows], own.v[rows])
        mask = jnp.arange(values.shape[2]) <= positions[:, :, None]  # (B, T, C)
        return grouped_attention(q, keys, values, mask), (*cache[:layer], own, *cache[layer + 1 :])

    return attend


def grouped_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Softmax attention in float32; query head h reads key head h // (Hq / Hkv).

    q (B, T, Hq, hd), k (B, Hkv, hd, S), v (B, Hkv, S, hd), mask (B, T, S) bool -> (B, T, Hq, hd).
    """
    batch, steps, heads, size = q.shape
    kv_heads, group = k.shape[1], heads // k.shape[1]
    # The queries of a group share their keys, so they are rows of one matrix: a plain batched matmul.
    q = q.reshape(batch, steps, kv_heads, group, size).transpose(0, 2, 3, 1, 4)  # (B, Hkv, G, T, hd)
    q = q.reshape(batch, kv_heads, group * steps, size)
    scores = jnp.einsum("bkqd,bkds->bkqs", q, k, preferred_element_type=jnp.float32) * size**-0.5
    scores = scores.reshape(batch, kv_heads, group, steps, -1)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(v.dtype)
    out = jnp.einsum("bkqs,bksd->bkqd", weights.reshape(batch, kv_heads, group * steps, -1), v)
    out = out.reshape(batch, kv_heads, group, steps, size).transpose(0, 3, 1, 2, 4)  # (B, T, Hkv, G, hd)
    return out.reshape(batch, steps, heads, size)


def _write(cache: LayerCache, k: Array, v: Array, positions: Array, rows: Array | None) -> LayerCache:
    """Put k and v (B, T, Hkv, hd) at ``positions`` (B, T), in place."""
    rows = jnp.arange(k.shape[0]) if rows is None else rows
    at, head, position = rows[:, None, None], jnp.arange(k.shape[2]), positions[:, :, None]  # (B, T, Hkv)
    return LayerCache(
        cache.k.at[at, head, :, position].set(k.astype(cache.k.dtype), mode="drop"),
        cache.v.at[at, head, position].set(v.astype(cache.v.dtype), mode="drop"),
    )
