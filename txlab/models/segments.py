"""Attention within segments, for sequences that are read whole: causal, several packed in one row.

Queries go in blocks, each over the keys up to its end, so that what is above the diagonal costs nothing and the
weights of one block alone are alive. The derivative is written out: it recomputes the weights from their logarithmic
sums, as FlashAttention does (arXiv:2205.14135, algorithm 4), and needs no reduction over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax.numpy as jnp
from jax import Array, lax

from txlab.models.attention import MASKED
from txlab.models.config import BLOCK

MAX_BLOCKS = 16  # of a row, for the compiler's sake; longer rows have larger blocks


def attention(q: Array, k: Array, v: Array, segment_ids: Array, apart: Array | None = None) -> tuple[Array, Array]:
    """Attended values (B, T, Hq, hd), and the log of each query's sum of exponentials (B, T, Hq) float32.

    q is (B, T, Hq, hd), k and v are (B, T, Hkv, hd), segment_ids (B, T); query head h reads key head h // (Hq / Hkv).
    ``apart`` () bool promises that no segment crosses a multiple of BLOCK, which saves what lies between blocks.
    """
    if apart is None or segment_ids.shape[1] <= BLOCK:
        return _attention(q, k, v, segment_ids)
    together = lambda arrays: _attention(*arrays)  # noqa: E731
    return lax.cond(apart, _by_block(together), together, (q, k, v, segment_ids))


def attention_gradient(
    q: Array, k: Array, v: Array, segment_ids: Array, apart: Array | None, out: Array, sums: Array, dout: Array
) -> tuple[Array, Array, Array]:
    """The gradients by q, k and v, from that by ``out``; ``out`` and ``sums`` as ``attention`` returns them."""
    arrays = (q, k, v, segment_ids, out, sums, dout)
    if apart is None or segment_ids.shape[1] <= BLOCK:
        return _gradient(*arrays)
    together = lambda arrays: _gradient(*arrays)  # noqa: E731
    return lax.cond(apart, _by_block(together), together, arrays)


def _by_block(function: Callable[[tuple[Array, ...]], tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """The function of arrays (B, T, ...), computed on (B * T / BLOCK, BLOCK, ...)."""

    def computed(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        shape = arrays[0].shape[:2]
        found = function(tuple(x.reshape(-1, BLOCK, *x.shape[2:]) for x in arrays))
        return tuple(x.reshape(*shape, *x.shape[2:]) for x in found)

    return computed


def _attention(q: Array, k: Array, v: Array, segment_ids: Array) -> tuple[Array, Array]:
    kv_heads, heads = k.shape[2], q.shape[2]
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)  # (B, Hkv, T, hd)
    outs, sums = [], []
    for rows, mask in _blocks(segment_ids):
        scores = _scores(_by_key_head(q[:, rows], kv_heads), keys[:, :, : rows.stop], mask)  # (B, Hkv, t * G, S)
        most = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - most)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("bkqs,bksd->bkqd", weights.astype(v.dtype), values[:, :, : rows.stop]) / total
        outs.append(_by_query_head(out.astype(q.dtype), heads))
        sums.append(_by_query_head(most + jnp.log(total), heads)[..., 0])
    return jnp.concatenate(outs, axis=1), jnp.concatenate(sums, axis=1)


def _gradient(
    q: Array, k: Array, v: Array, segment_ids: Array, out: Array, sums: Array, dout: Array
) -> tuple[Array, Array, Array]:
    kv_heads, size, heads = k.shape[2], k.shape[3], q.shape[2]
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
    slope = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(axis=-1, keepdims=True)  # (B, T, Hq, 1)
    dq, dk, dv = [], jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    for rows, mask in _blocks(segment_ids):
        seen = slice(0, rows.stop)
        queries, dy, mean, total = (_by_key_head(x[:, rows], kv_heads) for x in (q, dout, slope, sums[..., None]))
        weights = jnp.exp(_scores(queries, keys[:, :, seen], mask) - total)
        dweights = jnp.einsum("bkqd,bksd->bkqs", dy, values[:, :, seen], preferred_element_type=jnp.float32)
        dscores = (weights * (dweights - mean) * size**-0.5).astype(q.dtype)
        dq.append(_by_query_head(jnp.einsum("bkqs,bksd->bkqd", dscores, keys[:, :, seen]), heads))
        dk = dk.at[:, :, seen].add(jnp.einsum("bkqs,bkqd->bksd", dscores, queries))
        dv = dv.at[:, :, seen].add(jnp.einsum("bkqs,bkqd->bksd", weights.astype(v.dtype), dy))
    return jnp.concatenate(dq, axis=1), dk.swapaxes(1, 2).astype(k.dtype), dv.swapaxes(1, 2).astype(v.dtype)


def _blocks(segment_ids: Array) -> Iterator[tuple[slice, Array]]:
    """Blocks of t queries, and which keys [0, stop) each of them sees: (B, 1, t, 1, S) bool."""
    length = segment_ids.shape[1]
    block = max(BLOCK, -(-length // MAX_BLOCKS))
    for start in range(0, length, block):
        stop = min(start + block, length)
        own, keys = segment_ids[:, start:stop, None], segment_ids[:, None, :stop]
        causal = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)
        yield slice(start, stop), (causal & (own == keys) & (own != 0))[:, None, :, None]


def _scores(queries: Array, keys: Array, mask: Array) -> Array:
    """Scaled products (B, Hkv, t * G, S) float32; what ``mask`` hides is very negative, never infinite."""
    products = jnp.einsum("bkqd,bksd->bkqs", queries, keys, preferred_element_type=jnp.float32)
    by_query = products.reshape(*products.shape[:2], mask.shape[2], -1, mask.shape[-1]) * queries.shape[-1] ** -0.5
    return jnp.where(mask, by_query, MASKED).reshape(products.shape)


def _by_key_head(x: Array, kv_heads: int) -> Array:
    """(B, t, Hq, n) -> (B, Hkv, t * G, n): queries that share keys are rows of one matrix, a plain batched matmul."""
    batch, steps, heads, size = x.shape
    return x.reshape(batch, steps, kv_heads, heads // kv_heads, size).swapaxes(1, 2).reshape(batch, kv_heads, -1, size)


def _by_query_head(x: Array, heads: int) -> Array:
    """The way back: (B, Hkv, t * G, n) -> (B, t, Hq, n)."""
    batch, kv_heads, _, size = x.shape
    group = heads // kv_heads
    return x.reshape(batch, kv_heads, -1, group, size).swapaxes(1, 2).reshape(batch, -1, heads, size)
