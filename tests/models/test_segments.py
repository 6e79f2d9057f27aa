"""Attention within segments, and its derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txlab.models import segments
from txlab.models.segments import attention, attention_gradient

B, T, HEADS, KV_HEADS, SIZE = 2, 24, 6, 2, 8
IDS = np.stack([np.repeat((5, 2, 9, 0), (10, 8, 3, 3)), np.repeat((1, 0), (20, 4))])
RNG = np.random.default_rng(0)
Q = jnp.asarray(RNG.normal(size=(B, T, HEADS, SIZE)), jnp.float32)
K, V = (jnp.asarray(RNG.normal(size=(B, T, KV_HEADS, SIZE)), jnp.float32) for _ in range(2))


def reference(q, k, v):
    """One row, one head, one segment at a time, in the plainest way."""
    rows = []
    for b in range(B):
        out = jnp.zeros((T, HEADS, SIZE))
        for segment in set(IDS[b]) - {0}:
            (own,) = np.nonzero(IDS[b] == segment)
            for head in range(HEADS):
                key = head // (HEADS // KV_HEADS)
                scores = q[b, own, head] @ k[b, own, key].T / np.sqrt(SIZE)
                scores = jnp.where(np.tri(len(own), dtype=bool), scores, -jnp.inf)
                out = out.at[own, head].set(jax.nn.softmax(scores) @ v[b, own, key])
        rows.append(out)
    return jnp.stack(rows)


@pytest.fixture(params=[(128, 16), (5, 16), (24, 16), (4, 2)], ids=["one block", "uneven", "exact", "few blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(segments, "BLOCK", request.param[0])
    monkeypatch.setattr(segments, "MAX_BLOCKS", request.param[1])


def test_each_segment_is_attended_alone(blocks):
    out, _ = attention(Q, K, V, jnp.asarray(IDS))
    np.testing.assert_allclose(out[IDS > 0], reference(Q, K, V)[IDS > 0], atol=1e-5)
    assert np.isfinite(out).all(), "padding too"


def test_the_gradient(blocks):
    upstream = jnp.asarray(RNG.normal(size=Q.shape), jnp.float32) * (IDS > 0)[..., None, None]
    expected = jax.grad(lambda *qkv: (reference(*qkv) * upstream).sum(), argnums=(0, 1, 2))(Q, K, V)
    out, sums = attention(Q, K, V, jnp.asarray(IDS))
    found = attention_gradient(Q, K, V, jnp.asarray(IDS), None, out, sums, upstream)
    for name, one, other in zip("qkv", found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("apart", [True, False])
def test_blocks_apart_are_a_shortcut_and_no_more(monkeypatch, apart):
    """Where no segment crosses a block, the promise changes nothing; without it segments may cross."""
    monkeypatch.setattr(segments, "BLOCK", 12)
    ids = jnp.asarray(np.tile(np.repeat((1, 2, 0, 3, 4), (5, 6, 1, 4, 8)), (B, 1)))
    upstream = jnp.asarray(RNG.normal(size=Q.shape), jnp.float32) * (ids > 0)[..., None, None]
    (one, sums), (other, others) = attention(Q, K, V, ids), attention(Q, K, V, ids, jnp.bool_(apart))
    np.testing.assert_allclose(other[ids > 0], one[ids > 0], atol=1e-6)
    plain = attention_gradient(Q, K, V, ids, None, one, sums, upstream)
    promised = attention_gradient(Q, K, V, ids, jnp.bool_(apart), other, others, upstream)
    for x, y in zip(promised, plain, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    if apart:
        across, _ = attention(Q, K, V, jnp.ones_like(ids), jnp.bool_(apart))
        alone, _ = attention(Q, K, V, jnp.repeat(jnp.arange(1, 3), 12)[None].repeat(B, 0))
        np.testing.assert_allclose(across, alone, atol=1e-6, err_msg="a block sees nothing of another")
