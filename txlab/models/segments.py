"""Attention within segments, for sequences that are read whole: causal, several packed in one row.

A loop over blocks of queries, and in it one over the blocks of keys that they see: how many these are is known when
the program runs, so that a window costs what its segments need, and one compiled body serves windows of any length.
Blocks of keys are joined, and the derivative written out from the logarithmic sums, as FlashAttention does
(arXiv:2205.14135, algorithms 1 and 4).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from txlab.models.attention import MASKED
from txlab.models.config import BLOCK


class _Part(NamedTuple):
    """Attention to some of the keys, not yet divided by its total; all float32."""

    most: Array  # (B, Hkv, t * G, 1), the greatest score
    total: Array  # (B, Hkv, t * G, 1), of exponentials
    out: Array  # (B, Hkv, t * G, hd)


def attention(q: Array, k: Array, v: Array, segment_ids: Array, reach: Array | None = None) -> tuple[Array, Array]:
    """Attended values (B, T, Hq, hd), and the log of each query's sum of exponentials (B, T, Hq) float32.

    q is (B, T, Hq, hd), k and v are (B, T, Hkv, hd), segment_ids (B, T); query head h reads key head h // (Hq / Hkv).
    ``reach`` (blocks,) int32 says how many blocks of keys, the last of them its own, each BLOCK of queries looks
    at; it has to include all that they see, in any row. None: all blocks up to their own. The positions of a segment
    lie side by side.
    """
    heads, kv_heads, length, block = q.shape[2], k.shape[2], q.shape[1], min(BLOCK, q.shape[1])
    q, k, v, starts = (_whole_blocks(x, block) for x in (q, k, v, _starts(segment_ids)))

    def attend(_: None, i: Array) -> tuple[None, tuple[Array, Array]]:
        queries, since = _by_key_head(_cut(q, i, block), kv_heads), _cut(starts, i, block)

        def part(j: Array, diagonal: bool = False) -> _Part:
            keys, values = (_cut(x, j, block).swapaxes(1, 2) for x in (k, v))  # (B, Hkv, t, hd)
            scores = _scores(queries, keys, _mask(since - j * block, diagonal))
            most = scores.max(axis=-1, keepdims=True)
            weights = jnp.exp(scores - most)
            return _Part(
                most, weights.sum(axis=-1, keepdims=True), _product("qs,sd->qd", weights.astype(v.dtype), values)
            )

        most, total, out = _over_keys(i, reach, lambda j, before: _joined(before, part(j)), part(i, diagonal=True))
        return None, (
            _by_query_head((out / total).astype(q.dtype), heads),
            _by_query_head(most + jnp.log(total), heads),
        )

    _, (out, sums) = lax.scan(attend, None, jnp.arange(q.shape[1] // block))
    return _row(out, length), _row(sums, length)[..., 0]


def attention_gradient(
    q: Array, k: Array, v: Array, segment_ids: Array, reach: Array | None, out: Array, sums: Array, dout: Array
) -> tuple[Array, Array, Array]:
    """The gradients by q, k and v, from that by ``out``; ``out`` and ``sums`` as ``attention`` returns them."""
    heads, kv_heads, size, length, block = q.shape[2], k.shape[2], q.shape[3], q.shape[1], min(BLOCK, q.shape[1])
    arrays = (q, k, v, _starts(segment_ids), out, sums[..., None], dout)
    q, k, v, starts, out, sums, dout = (_whole_blocks(x, block) for x in arrays)

    def attend(dkv: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        since = _cut(starts, i, block)
        queries, dy, y, total = (_by_key_head(_cut(x, i, block), kv_heads) for x in (q, dout, out, sums))
        # As a product: XLA's own sum over the last axis is 10 times slower here.
        slope = (dy.astype(jnp.float32) * y.astype(jnp.float32)) @ jnp.ones((size, 1), jnp.float32)
        queries_t, dy_t = queries.swapaxes(2, 3), dy.swapaxes(2, 3)  # (B, Hkv, hd, t * G)

        def add(j: Array, gradients: tuple[Array, Array, Array], diagonal: bool = False) -> tuple[Array, Array, Array]:
            dq, dk, dv = gradients
            keys, values = (_cut(x, j, block).swapaxes(1, 2) for x in (k, v))
            weights = jnp.exp(_scores(queries, keys, _mask(since - j * block, diagonal)) - total)
            dweights = _product("qd,sd->qs", dy, values)
            dscores = (weights * (dweights - slope) * size**-0.5).astype(q.dtype)
            dk = dk.at[j].add(_product("dq,qs->ds", queries_t, dscores))
            dv = dv.at[j].add(_product("dq,qs->ds", dy_t, weights.astype(v.dtype)))
            return dq + _product("qs,sd->qd", dscores, keys), dk, dv

        start = add(i, (jnp.zeros(queries.shape, jnp.float32), *dkv), diagonal=True)
        dq, dk, dv = _over_keys(i, reach, add, start)
        return (dk, dv), _by_query_head(dq.astype(q.dtype), heads)

    blocks = q.shape[1] // block
    zeros = jnp.zeros((blocks, q.shape[0], kv_heads, size, block), jnp.float32)
    (dk, dv), dq = lax.scan(attend, (zeros, zeros), jnp.arange(blocks))
    dk, dv = (_row(x.transpose(0, 1, 4, 2, 3).astype(k.dtype), length) for x in (dk, dv))
    return _row(dq, length), dk, dv


def _over_keys(i: Array, reach: Array | None, step, start):
    """``step(j, carry)`` over the blocks j of keys before block ``i`` that its queries look at."""
    first = 0 if reach is None else jnp.maximum(i + 1 - reach[i], 0)
    return lax.fori_loop(first, i, step, start)


def _joined(one: _Part, other: _Part) -> _Part:
    most = jnp.maximum(one.most, other.most)
    left, right = jnp.exp(one.most - most), jnp.exp(other.most - most)
    return _Part(most, one.total * left + other.total * right, one.out * left + other.out * right)


def _starts(segment_ids: Array) -> Array:
    """Where in its row the segment of each position starts, (B, T) int32."""
    positions = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    changes = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
    return lax.cummax(jnp.where(changes, positions, 0), axis=1)


def _mask(since: Array, diagonal: bool) -> Array:
    """Which keys of a block its queries see, (B, 1, t, 1, t) bool: those from ``since`` (B, t) on, and none ahead.

    Of keys it takes positions alone: their ids, compared with those of queries, made the exponentials 4 times slower.
    """
    positions = jnp.arange(since.shape[1])
    seen = positions >= since[:, :, None]
    return (seen & (positions <= positions[:, None]) if diagonal else seen)[:, None, :, None]


def _scores(queries: Array, keys: Array, mask: Array) -> Array:
    """Scaled products (B, Hkv, t * G, t) float32; what ``mask`` hides is very negative, never infinite."""
    products = _product("qd,sd->qs", queries, keys)
    by_query = products.reshape(*products.shape[:2], mask.shape[2], -1, mask.shape[-1]) * queries.shape[-1] ** -0.5
    return jnp.where(mask, by_query, MASKED).reshape(products.shape)


def _product(dims: str, one: Array, other: Array) -> Array:
    """Matrix products in float32, one a key head; ``dims`` as einsum takes them, without (B, Hkv)."""
    return jnp.einsum(
        "bk" + dims.replace(",", ",bk").replace("->", "->bk"), one, other, preferred_element_type=jnp.float32
    )


def _whole_blocks(x: Array, block: int) -> Array:
    """(B, T, ...), with zeros up to a multiple of ``block``."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), *((0, 0),) * (x.ndim - 2)))


def _cut(x: Array, i: Array, block: int) -> Array:
    """Block ``i`` of (B, T, ...)."""
    return lax.dynamic_slice_in_dim(x, i * block, block, axis=1)


def _row(blocks: Array, length: int) -> Array:
    """The way back: (N, B, t, ...) -> (B, T, ...)."""
    row = blocks.swapaxes(0, 1)
    return row.reshape(row.shape[0], -1, *row.shape[3:])[:, :length]


def _by_key_head(x: Array, kv_heads: int) -> Array:
    """(B, t, Hq, n) -> (B, Hkv, t * G, n): queries that share keys are rows of one matrix, a plain batched matmul."""
    batch, steps, heads, size = x.shape
    return x.reshape(batch, steps, kv_heads, heads // kv_heads, size).swapaxes(1, 2).reshape(batch, kv_heads, -1, size)


def _by_query_head(x: Array, heads: int) -> Array:
    """The way back: (B, Hkv, t * G, n) -> (B, t, Hq, n)."""
    batch, kv_heads, _, size = x.shape
    group = heads // kv_heads
    return x.reshape(batch, kv_heads, -1, group, size).swapaxes(1, 2).reshape(batch, -1, heads, size)
