"""The jitted programs of sampling: prefill, decode, score."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from txlab.engine.drawing import DrawParams, Draws, draw, draw_alternatives, top_logprobs
from txlab.engine.kv_cache import cache_size
from txlab.lora.linear import AdapterSet, LoraProjector
from txlab.models.attention import KVCache, cached_attention
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


class Asked(NamedTuple):
    """What is asked of S positions of a prompt, and how its request draws."""

    tokens: Any  # (S, K) int32, whose logprobs are wanted
    positions: Any  # (S,) int32
    temperature: Any  # () float32; 0: greedy
    seed: Any  # (2,) uint32


class Scores(NamedTuple):
    """What the untempered model says at S positions about the token after each; draws are at the temperature."""

    logprobs: jax.Array  # (S, K) float32, of the tokens asked for
    top_ids: jax.Array  # (S, k) int32
    top_logprobs: jax.Array  # (S, k) float32
    alt_tokens: jax.Array  # (S, A) int32
    alt_logprobs: jax.Array  # (S, A) float32


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def prefill(
    graph, width: int, state, adapters: AdapterSet | None, cache: KVCache, tokens, positions, rows, entries
) -> tuple[KVCache, jax.Array]:
    """Write keys and values of a piece of B prompts, tokens and positions (B, T), into the cache rows ``rows`` (B,).

    The pieces before it are in the cache already; positions are below ``width``, those of padding beyond the cache.
    ``entries`` (B,) says which adapter of the set a prompt uses. Also returns the final states (B, T, D).
    """
    decoder = nnx.merge(graph, state)
    attend = cached_attention(positions, rows, width)
    hidden, cache = decoder(tokens, positions, attend, cache, _projector(adapters, entries))
    return cache, hidden


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def decode(graph, most: int, k: int, state, adapters: AdapterSet | None, cache: KVCache, rows: Rows, steps):
    """Up to ``steps`` (at most ``most``) tokens for each row, fewer where all rows end.

    Returns the cache and what was drawn, step by step: arrays of Draws with an axis ``most`` after S, whose token is
    -1 where a row had ended.
    """
    decoder = nnx.merge(graph, state)
    project = _projector(adapters, rows.adapter)
    _, beyond = cache_size(cache)

    def unfinished(carry):
        step, rows, *_ = carry
        return (step < steps) & (rows.remaining > 0).any()

    def body(carry):
        step, rows, cache, drawn = carry
        alive = rows.remaining > 0
        position = jnp.where(alive, rows.position, beyond)[:, None]
        hidden, cache = decoder(rows.token[:, None], position, cached_attention(position), cache, project)
        new = draw(decoder.unembed(hidden, project)[:, 0], rows.draw, rows.drawn, k)
        kept = new._replace(tokens=jnp.where(alive, new.tokens, -1))
        drawn = jax.tree.map(lambda all_steps, this: all_steps.at[:, step].set(this), drawn, kept)
        stopped = (new.tokens[:, None] == rows.stop_ids).any(axis=1)
        rows = rows._replace(
            token=jnp.where(alive, new.tokens, rows.token),
            position=rows.position + alive,
            drawn=rows.drawn + alive,
            remaining=jnp.where(alive & ~stopped, rows.remaining - 1, 0),
        )
        return step + 1, rows, cache, drawn

    shape = (rows.token.shape[0], most)
    none = Draws(
        jnp.full(shape, -1, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, k), jnp.int32),
        jnp.zeros((*shape, k), jnp.float32),
    )
    _, _, cache, drawn = lax.while_loop(unfinished, body, (jnp.int32(0), rows, cache, none))
    return cache, drawn


@partial(jax.jit, static_argnums=1)
def slice_states(hidden: jax.Array, size: int, row, start) -> jax.Array:
    """Positions ``start`` … of one row of states (B, T, D): (size, D)."""
    return lax.dynamic_slice_in_dim(hidden[row], start, size)


@partial(jax.jit, static_argnums=(0, 1, 2))
def score(
    graph, k: int, alternatives: int, state, adapters: AdapterSet | None, hidden: jax.Array, asked: Asked
) -> Scores:
    """Answer what is asked of states (S, D): S at most HEAD_TOKENS, as the logits of all are alive together.

    ``adapters`` holds one adapter at most.
    """
    logits = nnx.merge(graph, state).unembed(hidden, _projector(adapters, None))  # (S, V)
    total = jax.nn.logsumexp(logits, axis=-1)

    def logprobs(tokens: jax.Array) -> jax.Array:
        return jnp.take_along_axis(logits, tokens, axis=-1) - total[:, None]

    alts = draw_alternatives(logits, asked.temperature, asked.seed, asked.positions, alternatives)
    return Scores(logprobs(asked.tokens), *top_logprobs(logits, total, k), alts, logprobs(alts))


def _projector(adapters: AdapterSet | None, entries: jax.Array | None) -> Projector:
    return base_projector if adapters is None else LoraProjector(adapters, entries)
