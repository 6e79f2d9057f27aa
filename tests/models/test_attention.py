"""Attention: packing, padding, the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.compute import full_logits
from txlab.config import ModelSettings
from txlab.models import attention
from txlab.models.attention import cached_attention, make_cache, segment_attention
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


def test_packed_segments_do_not_see_each_other(base, expected):
    lengths = (10, 8, 3)
    packed = np.concatenate([TOKENS[i, :n] for i, n in enumerate(lengths)])[None]
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    segments = np.repeat((5, 2, 9), lengths)[None]
    logits, _ = run(base, packed, positions, segment_attention(jnp.asarray(segments)))
    wanted = np.concatenate([expected[i, :n] for i, n in enumerate(lengths)])[None]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)


def test_padding_is_finite_forward_and_backward(base):
    segments = jnp.asarray([[1, 1, 0, 0], [0, 0, 0, 0]])

    def total(q):
        out, _ = segment_attention(segments)(0, q, q[:, :, :2], q[:, :, 2:], None)
        return jnp.sum(out**2)

    q = jnp.ones((2, 4, 4, 16))
    assert np.isfinite(total(q))
    assert np.isfinite(jax.grad(total)(q)).all()


@pytest.mark.parametrize(("block", "blocks"), [(5, 16), (24, 16), (4, 2)])
def test_blocks_of_queries_change_nothing(base, expected, monkeypatch, block, blocks):
    monkeypatch.setattr(attention, "BLOCK", block)
    monkeypatch.setattr(attention, "MAX_BLOCKS", blocks)
    positions = np.broadcast_to(np.arange(24), TOKENS.shape)
    logits, _ = run(base, TOKENS, positions, segment_attention(jnp.ones(TOKENS.shape, int)))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_cached_decode_equals_full_forward(base, expected):
    """Rows of different lengths: prefill padded at the end, then one token at a time."""
    lengths = np.asarray([4, 9, 1])
    cache = make_cache(base.config, sequences=3, context=24)
    steps = np.broadcast_to(np.arange(9), (3, 9))
    positions = np.where(steps < lengths[:, None], steps, 24)  # 24: outside the cache, so not written
    logits, cache = run(base, TOKENS[:, :9], positions, cached_attention(jnp.asarray(positions)), cache)
    assert not cache.k[:, :, :, 9:].any()  # padding was not written
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row, :length], rtol=0, atol=1e-4)
    for _ in range(4):
        positions = lengths[:, None]
        tokens = np.take_along_axis(TOKENS, positions, axis=1)
        logits, cache = run(base, tokens, positions, cached_attention(jnp.asarray(positions), width=16), cache)
        np.testing.assert_allclose(logits[:, 0], expected[np.arange(3), lengths], rtol=0, atol=1e-4)
        lengths = lengths + 1


def test_rows_choose_sequences_of_the_cache(base, expected):
    cache = make_cache(base.config, sequences=4, context=24)
    positions = np.broadcast_to(np.arange(8), (2, 8))
    attend = cached_attention(jnp.asarray(positions), rows=jnp.asarray([3, 1]))
    logits, cache = run(base, TOKENS[:2, :8], positions, attend, cache)
    np.testing.assert_allclose(logits, expected[:2, :8], rtol=0, atol=1e-4)
    assert [bool(cache.k[:, row].any()) for row in range(4)] == [False, True, False, True]
    assert not cache.v[:, :, :, 8:].any()
