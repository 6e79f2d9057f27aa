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

UPSTREAM = jnp.asarray(RNG.normal(size=Q.shape), jnp.float32)


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


@pytest.fixture(params=[128, 24, 5, 4], ids=["larger", "one block", "uneven", "even"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(segments, "BLOCK", request.param)


def test_each_segment_is_attended_alone(blocks):
    out, _ = attention(Q, K, V, jnp.asarray(IDS))
    np.testing.assert_allclose(out[IDS > 0], reference(Q, K, V)[IDS > 0], atol=1e-5)
    assert np.isfinite(out).all(), "padding too"


def test_the_gradient(blocks):
    upstream = UPSTREAM * (IDS > 0)[..., None, None]
    expected = jax.grad(lambda *qkv: (reference(*qkv) * upstream).sum(), argnums=(0, 1, 2))(Q, K, V)
    out, sums = attention(Q, K, V, jnp.asarray(IDS))
    found = attention_gradient(Q, K, V, jnp.asarray(IDS), None, out, sums, upstream)
    for name, one, other in zip("qkv", found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)


@pytest.fixture
def packed(monkeypatch):
    """Ids in four blocks of 6, what each block of queries has to look at, and the values and gradients of that."""
    monkeypatch.setattr(segments, "BLOCK", 6)
    ids = jnp.asarray(np.tile(np.repeat((1, 2, 3, 0), (6, 9, 7, 2)), (B, 1)))
    return ids, (1, 1, 2, 2)


def computed(ids, reach):
    """Values and the gradients by q, k and v, of what is no padding."""
    reach = None if reach is None else jnp.asarray(reach, jnp.int32)
    real = (ids > 0)[..., None, None]
    out, sums = attention(Q, K, V, ids, reach)
    return out * real, *attention_gradient(Q, K, V, ids, reach, out, sums, UPSTREAM * real)


@pytest.mark.parametrize("more", [0, 1, 5], ids=["exact", "one more", "more than there are"])
def test_enough_reach_changes_nothing(packed, more):
    ids, reach = packed
    for one, other in zip(computed(ids, np.add(reach, more)), computed(ids, None), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_is_beyond_reach_is_not_looked_at(packed):
    """A block of queries that looks at its own keys alone sees them as if a segment started there."""
    ids, _ = packed
    cut = ids + 10 * (ids > 0) * (jnp.arange(T) // 6)
    short = computed(ids, (1, 1, 1, 1))
    for one, other, whole in zip(short, computed(cut, None), computed(ids, None), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert not np.allclose(one, whole, atol=1e-2)


def test_bfloat16_stays(packed):
    ids, reach = packed
    low = [x.astype(jnp.bfloat16) for x in (Q, K, V, UPSTREAM)]
    out, sums = attention(*low[:3], ids, jnp.asarray(reach))
    found = (
        out,
        *attention_gradient(*low[:3], ids, jnp.asarray(reach), out, sums, low[3] * (ids > 0)[..., None, None]),
    )
    assert [x.dtype for x in (*found, sums)] == [jnp.bfloat16] * 4 + [jnp.float32]
    for one, other in zip((out * (ids > 0)[..., None, None], *found[1:]), computed(ids, None), strict=True):
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.1)
