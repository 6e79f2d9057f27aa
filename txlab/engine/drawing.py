"""From logits to a token: temperature, top-k, top-p and counter-based randomness, row by row.

A row's draw depends on its own logits, seed, sample index and count of tokens, and on nothing else in the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ALTERNATIVES = np.uint32(2**32 - 1)  # stands in a key where a sample's index does, which is always smaller


class DrawParams(NamedTuple):
    """How each of S rows draws; all arrays are (S,) but ``seed``."""

    temperature: jax.Array  # float32; 0: greedy
    top_k: jax.Array  # int32; V or more: off
    top_p: jax.Array  # float32; 1: off
    seed: jax.Array  # (S, 2) uint32, high and low word
    sample: jax.Array  # int32, index among the samples of one request


class Draws(NamedTuple):
    """Newly drawn tokens, the logprobs of these, and the k likeliest tokens of which they were drawn."""

    tokens: jax.Array  # (S,) int32
    logprobs: jax.Array  # (S,) float32
    top_ids: jax.Array  # (S, k) int32, best first
    top_logprobs: jax.Array  # (S, k) float32


def draw(logits: jax.Array, params: DrawParams, count: jax.Array, k: int = 0) -> Draws:
    """Logits (S, V) float32 and tokens drawn so far (S,) -> one token for each row.

    All logprobs are of the softmax at the row's temperature (at 1 for greedy rows), before top-k and top-p cut it.
    """
    hot = params.temperature > 0
    scaled = logits / jnp.where(hot, params.temperature, 1.0)[:, None]
    cut = (params.top_k < logits.shape[-1]) | (params.top_p < 1)
    candidates = lax.cond((cut & hot).any(), lambda: _truncate(scaled, params), lambda: scaled)
    noisy = lax.cond(hot.any(), lambda: candidates + _noise(logits.shape, params, count), lambda: candidates)
    tokens = jnp.argmax(jnp.where(hot[:, None], noisy, logits), axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    total = jax.nn.logsumexp(scaled, axis=-1)
    return Draws(tokens, chosen - total, *top_logprobs(scaled, total, k))


def draw_alternatives(
    logits: jax.Array, temperature: jax.Array, seed: jax.Array, positions: jax.Array, k: int
) -> jax.Array:
    """Logits (S, V) float32 of one prompt's ``positions`` (S,) -> k draws with replacement at each, (S, k) int32.

    ``temperature`` () and ``seed`` (2,) are the request's, as in DrawParams; the first draws are the same for every k.
    """
    hot = temperature > 0
    scaled = logits / jnp.where(hot, temperature, 1.0)
    keys = jax.vmap(lambda position: _key(seed, ALTERNATIVES, position))(positions)

    def one(_, index: jax.Array):
        noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, index), logits.shape[1:]))(keys)
        return None, jnp.argmax(scaled + jnp.where(hot, noise, 0.0), axis=-1)

    _, tokens = lax.scan(one, None, jnp.arange(k))  # one after another: the noise of a single draw is alive
    return tokens.T.astype(jnp.int32)


def top_logprobs(logits: jax.Array, total: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k likeliest of logits (S, V), best first: ids (S, k) int32 and logprobs; ``total`` (S,) is the logsumexp."""
    if k == 0:
        empty = (logits.shape[0], 0)
        return jnp.zeros(empty, jnp.int32), jnp.zeros(empty, jnp.float32)
    best, ids = lax.top_k(logits, k)
    return ids, best - total[:, None]


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
        return jax.random.gumbel(_key(seed, sample, count), shape[1:], jnp.float32)

    return jax.vmap(of_row)(params.seed, params.sample, count)


def _key(seed: jax.Array, sample: Any, count: jax.Array) -> jax.Array:
    """The key of one token's noise."""
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, sample), count)
