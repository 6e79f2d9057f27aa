"""The jitted programs of sampling: embed, a few layers, draw, score.

A step is dispatched from the host in a few pieces, all alike: layers of one shape are compiled once, in a fraction of
a second, and no product reads a copy of its weights, as one in a loop on the device would.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from txlab.engine.drawing import DrawParams, draw, draw_alternatives, top_logprobs
from txlab.lora.adapter import Factors
from txlab.lora.linear import LoraProjector
from txlab.models.attention import KVCache, cached_attention, rope_angles
from txlab.models.config import ModelConfig
from txlab.models.decoder import base_projector, block, rms_norm


class Rows(NamedTuple):
    """The state of S decoding rows. A row with ``remaining`` 0 is dead: it computes, but writes and emits nothing."""

    token: Any  # (S,) int32, the newest token, not yet in the cache
    position: Any  # (S,) int32, where it belongs
    drawn: Any  # (S,) int32, tokens drawn so far
    remaining: Any  # (S,) int32, tokens that may still be drawn
    stop_ids: Any  # (S, M) int32, -1: none
    draw: DrawParams


class Ends(NamedTuple):
    """What of the base lies before and after its layers."""

    embedding: Any  # (V, D)
    norm: Any  # (D,)
    head: Any  # (V, D)


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


class Inputs(NamedTuple):
    """What the layers take of B pieces of T tokens."""

    x: jax.Array  # (B, T, D)
    rope: tuple[jax.Array, jax.Array]  # (B, T, hd/2)
    positions: jax.Array  # (B, T) int32, places in the cache; beyond it: padding


@partial(jax.jit, static_argnums=0)
def embed(config: ModelConfig, embedding, tokens, positions) -> Inputs:
    """Of tokens and positions (B, T) int32."""
    return Inputs(embedding[tokens], rope_angles(config, positions), positions)


@partial(jax.jit, static_argnums=0, donate_argnums=(4, 5))
def layers(config: ModelConfig, weights, adapters, routes, cache: KVCache, x, rope, positions, rows):
    """A few layers, with their adapters and their part of the cache: the states (B, T, D) after them, and the cache.

    ``rows`` (B,) says which row of the cache a piece belongs to; None: piece b to row b, of all. ``routes``: see
    LoraProjector.
    """
    attend = cached_attention(positions, rows)
    project = base_projector if adapters is None else LoraProjector(adapters, None, routes)
    for index, of_layer in enumerate(weights):

        def attend_here(q: jax.Array, k: jax.Array, v: jax.Array, index: int = index) -> jax.Array:
            nonlocal cache
            out, cache = attend(index, q, k, v, cache)
            return out

        x = block(config, of_layer, x, rope, attend_here, project.layer(index))
    return x, cache


@partial(jax.jit, static_argnums=(0, 1))
def draw_next(config: ModelConfig, k: int, base: Ends, own: Factors | None, routes, x, rows: Rows, beyond):
    """From states (S, 1, D) to the next token of each row.

    Returns the rows after it, what was drawn, the token -1 where a row had ended, and the Inputs of the next step.
    """
    alive = rows.remaining > 0
    new = draw(_logits(config, base, own, routes, x)[:, 0], rows.draw, rows.drawn, k)
    stopped = (new.tokens[:, None] == rows.stop_ids).any(axis=1)
    rows = rows._replace(
        token=jnp.where(alive, new.tokens, rows.token),
        position=rows.position + alive,
        drawn=rows.drawn + alive,
        remaining=jnp.where(alive & ~stopped, rows.remaining - 1, 0),
    )
    return rows, new._replace(tokens=jnp.where(alive, new.tokens, -1)), enter(config, base.embedding, rows, beyond)


@partial(jax.jit, static_argnums=0)
def enter(config: ModelConfig, embedding, rows: Rows, beyond) -> Inputs:
    """The newest token of each row, (S, 1); a row that has ended is padding."""
    positions = jnp.where(rows.remaining > 0, rows.position, beyond)[:, None]
    return Inputs(embedding[rows.token[:, None]], rope_angles(config, positions), positions)


@partial(jax.jit, static_argnums=(0, 1, 2))
def score(
    config: ModelConfig, k: int, alternatives: int, base: Ends, own: Factors | None, routes, hidden, asked: Asked
) -> Scores:
    """Answer what is asked of states (S, D): few, as the logits of all are alive together.

    ``own`` is the head's part of an AdapterSet, ``routes`` that of the adapter that is asked.
    """
    logits = _logits(config, base, own, routes, hidden[None])[0]  # (S, V)
    total = jax.nn.logsumexp(logits, axis=-1)

    def logprobs(tokens: jax.Array) -> jax.Array:
        return jnp.take_along_axis(logits, tokens, axis=-1) - total[:, None]

    alts = draw_alternatives(logits, asked.temperature, asked.seed, asked.positions, alternatives)
    return Scores(logprobs(asked.tokens), *top_logprobs(logits, total, k), alts, logprobs(alts))


def _logits(config: ModelConfig, base: Ends, own: Factors | None, routes, x: jax.Array) -> jax.Array:
    """Float32 logits (B, T, V) of states (B, T, D)."""
    return LoraProjector((), own, routes).head(rms_norm(x, base.norm, config.rms_norm_eps), base.head)
