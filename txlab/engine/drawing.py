"""From logits to a token: temperature, top-k, top-p and counter-based randomness, row by row.

A row's draw depends on its own logits, seed, sample index and count of tokens, and on nothing else in the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class DrawParams(NamedTuple):
    """How each of S rows draws; all arrays are (S,) but ``seed``."""

    temperature: jax.Array  # float32; 0: greedy
    top_k: jax.Array  # int32; V or more: off
    top_p: jax.Array  # float32; 1: off
    seed: jax.Array  # (S, 2) uint32, high and low word
    sample: jax.Array  # int32, index among the samples of one request


def draw(logits: jax.Array, params: DrawParams, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits (S, V) float32 and tokens drawn so far (S,) -> tokens (S,) int32 and their logprobs (S,) float32.

    Logprobs are of the softmax at the row's temperature (at 1 for greedy rows), before top-k and top-p cut it.
    """
    hot = params.temperature > 0
    scaled = logits / jnp.where(hot, params.temperature, 1.0)[:, None]
    cut = (params.top_k < logits.shape[-1]) | (params.top_p < 1)
    candidates = lax.cond((cut & hot).any(), lambda: _truncate(scaled, params), lambda: scaled)
    noisy = lax.cond(hot.any(), lambda: candidates + _noise(logits.shape, params, count), lambda: candidates)
    tokens = jnp.argmax(jnp.where(hot[:, None], noisy, logits), axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(scaled, axis=-1)


def _truncate(scaled: jax.Array, params: DrawParams) -> jax.Array:
    """-inf where a token is not among the top_k, or not in the smallest set of these that holds top_p of the mass."""
    ordered = -jnp.sort(-scaled, axis=-1)  # (S, V), largest first
    rank = jnp.arange(scaled.shape[-1])
    ordered = jnp.where(rank < params.top_k[:, None], ordered, -jnp.inf)
    mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
    before = jnp.pad(mass[:, :-1], ((0, 0), (1, 0)))  # mass of all that is likelier
    kept = (before < params.top_p[:, None]) | (params.top_p[:, None] >= 1)
    least = jnp.min(jnp.where(kept & jnp.isfinite(ordered), ordered, jnp.inf), axis=-1)
    return jnp.where(scaled >= least[:, None], scaled, -jnp.inf)


def _noise(shape: tuple[int, ...], params: DrawParams, count: jax.Array) -> jax.Array:
    """Gumbel noise (S, V): the argmax of logits plus it is a draw from their softmax."""

    def of_row(seed: jax.Array, sample: jax.Array, count: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, sample), count)
        return jax.random.gumbel(key, shape[1:], jnp.float32)

    return jax.vmap(of_row)(params.seed, params.sample, count)
