"""The jitted programs of sampling: prefill, decode, score."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from txlab.engine.drawing import DrawParams, draw
from txlab.engine.kv_cache import cache_size
from txlab.engine.trainer import HEAD_TOKENS, head_logits
from txlab.lora.linear import AdapterSet, LoraProjector
from txlab.models.attention import KVCache, cached_attention, segment_attention
from txlab.models.decoder import Projector, base_projector


class Rows(NamedTuple):
    """The state of S decoding rows. A row with ``remaining`` 0 is dead: it computes, but writes and emits nothing."""

    token: Any  # (S,) int32, the newest token, not yet in the cache
    position: Any  # (S,) int32, where it belongs
    drawn: Any  # (S,) int32, tokens drawn so far
    remaining: Any  # (S,) int32, tokens that may still be drawn
    adapter: Any  # (S,) int32, entry in the adapter set
    stop_ids: Any  # (S, M) int32, -1: none
    draw: DrawParams


class Scores(NamedTuple):
    """Of one text of P tokens; position i speaks of token i + 1."""

    logprobs: jax.Array  # (P,) float32
    top_ids: jax.Array  # (P, k) int32
    top_logprobs: jax.Array  # (P, k) float32


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def prefill(
    graph, width: int, state, adapters: AdapterSet | None, cache: KVCache, tokens, positions, rows, entries
) -> KVCache:
    """Write keys and values of a piece of B prompts, tokens and positions (B, T), into the cache rows ``rows`` (B,).

    The pieces before it are in the cache already; positions are below ``width``, those of padding beyond the cache.
    ``entries`` (B,) says which adapter of the set a prompt uses.
    """
    decoder = nnx.merge(graph, state)
    attend = cached_attention(positions, rows, width)
    _, cache = decoder(tokens, positions, attend, cache, _projector(adapters, entries))
    return cache


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def decode(graph, most: int, state, adapters: AdapterSet | None, cache: KVCache, rows: Rows, steps):
    """Up to ``steps`` (at most ``most``) tokens for each row, fewer where all rows end.

    Returns the cache, the tokens (S, most) int32 (-1 where a row had ended) and their logprobs (S, most) float32.
    """
    decoder = nnx.merge(graph, state)
    project = _projector(adapters, rows.adapter)
    _, beyond = cache_size(cache)

    def unfinished(carry):
        step, rows, *_ = carry
        return (step < steps) & (rows.remaining > 0).any()

    def body(carry):
        step, rows, cache, tokens, logprobs = carry
        alive = rows.remaining > 0
        position = jnp.where(alive, rows.position, beyond)[:, None]
        hidden, cache = decoder(rows.token[:, None], position, cached_attention(position), cache, project)
        token, logprob = draw(decoder.unembed(hidden, project)[:, 0], rows.draw, rows.drawn)
        tokens = tokens.at[:, step].set(jnp.where(alive, token, -1))
        logprobs = logprobs.at[:, step].set(logprob)
        stopped = (token[:, None] == rows.stop_ids).any(axis=1)
        rows = rows._replace(
            token=jnp.where(alive, token, rows.token),
            position=rows.position + alive,
            drawn=rows.drawn + alive,
            remaining=jnp.where(alive & ~stopped, rows.remaining - 1, 0),
        )
        return step + 1, rows, cache, tokens, logprobs

    shape = (rows.token.shape[0], most)
    start = (jnp.int32(0), rows, cache, jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32))
    _, _, cache, tokens, logprobs = lax.while_loop(unfinished, body, start)
    return cache, tokens, logprobs


@partial(jax.jit, static_argnums=(0, 1))
def score(graph, k: int, state, adapters: AdapterSet | None, tokens: jax.Array, length: jax.Array) -> Scores:
    """Logprobs of a text's own tokens and the k likeliest at each position; tokens (P,), of which ``length`` count.

    ``adapters`` holds one adapter at most.
    """
    decoder = nnx.merge(graph, state)
    width = tokens.shape[0]
    positions = jnp.arange(width, dtype=jnp.int32)
    segments = (positions < length).astype(jnp.int32)[None]
    project = _projector(adapters, jnp.zeros(1, jnp.int32))
    hidden, _ = decoder(tokens[None], positions[None], segment_attention(segments), project=project)
    size = min(HEAD_TOKENS, width)

    def of_slice(_, part):
        hidden, targets = part
        logprobs = jax.nn.log_softmax(head_logits(decoder.head, adapters, hidden, jnp.int32(0)), axis=-1)
        chosen = jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]
        best, ids = lax.top_k(logprobs, k) if k else (jnp.zeros((size, 0)), jnp.zeros((size, 0), jnp.int32))
        return None, Scores(chosen, ids, best)

    parts = (hidden.reshape(width // size, size, -1), jnp.roll(tokens, -1).reshape(width // size, size))
    _, scores = lax.scan(of_slice, None, parts)
    return jax.tree.map(lambda x: x.reshape(width, *x.shape[2:]), scores)


def _projector(adapters: AdapterSet | None, entries: jax.Array) -> Projector:
    return base_projector if adapters is None else LoraProjector(adapters, entries)
