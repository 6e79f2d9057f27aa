"""Attention over the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.compute import full_logits
from txlab.config import ModelSettings
from txlab.models.attention import cached_attention, make_cache
from txlab.models.base import BaseModel, load_base

TOKENS = np.random.default_rng(3).integers(3, 320, (3, 24))  # (B, T)


@pytest.fixture(scope="module")
def base(tiny_llama) -> BaseModel:
    return load_base(ModelSettings(name=str(tiny_llama)))


@pytest.fixture(scope="module")
def expected(base) -> np.ndarray:
    return full_logits(base, TOKENS)


def run(base, tokens, positions, attend, cache=None):
    @jax.jit
    def forward(decoder, cache):
        hidden, cache = decoder(jnp.asarray(tokens), jnp.asarray(positions), attend, cache)
        return decoder.unembed(hidden), cache

    logits, cache = forward(base.decoder, cache)
    return np.asarray(logits), cache


def test_cached_decode_equals_full_forward(base, expected):
    """Rows of different lengths: prefill padded at the end, then one token at a time."""
    lengths = np.asarray([4, 9, 1])
    cache = make_cache(base.config, sequences=3, context=24)
    steps = np.broadcast_to(np.arange(9), (3, 9))
    positions = np.where(steps < lengths[:, None], steps, 24)  # 24: outside the cache, so not written
    logits, cache = run(base, TOKENS[:, :9], positions, cached_attention(jnp.asarray(positions)), cache)
    assert not any(layer.k[..., 9:].any() or layer.v[:, :, 9:].any() for layer in cache)  # padding was not written
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row, :length], rtol=0, atol=1e-4)
    for _ in range(4):
        positions = lengths[:, None]
        tokens = np.take_along_axis(TOKENS, positions, axis=1)
        logits, cache = run(base, tokens, positions, cached_attention(jnp.asarray(positions)), cache)
        np.testing.assert_allclose(logits[:, 0], expected[np.arange(3), lengths], rtol=0, atol=1e-4)
        lengths = lengths + 1


def test_rows_choose_sequences_of_the_cache(base, expected):
    cache = make_cache(base.config, sequences=4, context=24)
    positions = np.broadcast_to(np.arange(8), (2, 8))
    attend = cached_attention(jnp.asarray(positions), rows=jnp.asarray([3, 1]))
    logits, cache = run(base, TOKENS[:2, :8], positions, attend, cache)
    np.testing.assert_allclose(logits, expected[:2, :8], rtol=0, atol=1e-4)
    assert [bool(cache[1].k[row].any()) for row in range(4)] == [False, True, False, True]
    assert not any(layer.v[:, :, 8:].any() for layer in cache)


def test_pieces_of_one_text_may_lie_side_by_side(base, expected):
    """Two rows of a batch that name the same row of the cache are one text."""
    cache = make_cache(base.config, sequences=2, context=24)
    positions = np.arange(16).reshape(2, 8)
    attend = cached_attention(jnp.asarray(positions), rows=jnp.asarray([1, 1]))
    logits, _ = run(base, TOKENS[:1, :16].reshape(2, 8), positions, attend, cache)
    np.testing.assert_allclose(logits.reshape(16, -1), expected[0, :16], rtol=0, atol=1e-4)
