"""What a base model says: logits and greedy text, by the full forward pass and by the cache."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from txlab.models.attention import Attend, Cache, KVCache, cached_attention, make_cache
from txlab.models.base import BaseModel
from txlab.models.decoder import Decoder


def segment_attention(segment_ids: np.ndarray | jax.Array) -> Attend:
    """Attention without a cache, within equal ids of ``segment_ids`` (B, T); id 0 is padding. JAX's own."""
    ids = jnp.asarray(segment_ids)
    same = (ids[:, :, None] == ids[:, None, :]) & (ids != 0)[:, :, None]  # (B, T, T)
    mask = (same & jnp.tri(ids.shape[1], dtype=bool))[:, None]

    def attend(layer: int | jax.Array, q, k, v, cache: Cache) -> tuple[jax.Array, Cache]:
        return jax.nn.dot_product_attention(q, k, v, mask=mask), cache

    return attend


def full_logits(base: BaseModel, tokens: np.ndarray) -> np.ndarray:
    """(B, T) int -> (B, T, V) float32, every row one segment."""
    return np.asarray(_full(base.decoder, jnp.asarray(tokens, jnp.int32)))


def greedy(base: BaseModel, prompt: list[int], count: int) -> list[int]:
    """The ``count`` likeliest next tokens, one after the other, decoded through a cache; stops at an eos."""
    cache = make_cache(base.config, 1, len(prompt) + count)
    token, cache = _step(base.decoder, jnp.asarray([prompt]), jnp.arange(len(prompt))[None], cache)
    tokens = [int(token)]
    while len(tokens) < count and tokens[-1] not in base.eos_ids:
        position = jnp.asarray([[len(prompt) + len(tokens) - 1]])
        token, cache = _step(base.decoder, token.reshape(1, 1), position, cache)
        tokens.append(int(token))
    return tokens


@jax.jit
def _full(decoder: Decoder, tokens: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = decoder(tokens, positions, segment_attention(jnp.ones_like(tokens)))
    return decoder.unembed(hidden)


@partial(jax.jit, donate_argnums=3)
def _step(decoder: Decoder, tokens: jax.Array, positions: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    hidden, cache = decoder(tokens, positions, cached_attention(positions), cache)
    return decoder.unembed(hidden[0, -1]).argmax(), cache
