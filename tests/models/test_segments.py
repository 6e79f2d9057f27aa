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
    found = attention_gradient(Q, K, V, jnp.asarray(IDS), out, sums, upstream)
    for name, one, other in zip("qkv", found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)
