"""Draws follow the distribution that their parameters say."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from txlab.engine.drawing import DrawParams, draw

V = 40
LOGITS = np.random.default_rng(0).normal(0, 2, V).astype(np.float32)
CHI2_999 = 80.1  # chi-square of 44 degrees of freedom exceeds it once in 1000; fewer degrees, more rarely


def params(rows, temperature=1.0, top_k=V, top_p=1.0, seed=7, sample=None):
    def full(value, dtype):
        return np.full(rows, value, dtype)

    sample = np.arange(rows, dtype=np.int32) if sample is None else sample
    seeds = np.tile(np.array([0, seed], np.uint32), (rows, 1))
    return DrawParams(full(temperature, np.float32), full(top_k, np.int32), full(top_p, np.float32), seeds, sample)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def truncated(temperature, top_k, top_p):
    """Reference: temperature, then top-k, then top-p, by sorting."""
    p = softmax(LOGITS / temperature)
    order = np.argsort(-p)
    kept = order[:top_k]
    mass = np.cumsum(p[kept] / p[kept].sum())
    kept = kept[: np.searchsorted(mass, top_p) + 1] if top_p < 1 else kept
    out = np.zeros(V)
    out[kept] = p[kept] / p[kept].sum()
    return out


jitted = jax.jit(draw)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, V, 1.0), (0.5, V, 1.0), (2.0, V, 1.0), (1.0, 5, 1.0), (1.0, V, 0.7), (1.5, 12, 0.8), (1.0, 1, 1.0)],
)
def test_frequencies_pass_a_chi_square_test(temperature, top_k, top_p):
    n = 20000
    tokens, logprobs, *_ = jitted(np.tile(LOGITS, (n, 1)), params(n, temperature, top_k, top_p), np.zeros(n, np.int32))
    expected = truncated(temperature, top_k, top_p) * n
    counts = np.bincount(tokens, minlength=V)
    assert (counts[expected == 0] == 0).all(), "a token that was cut away was drawn"
    likely = expected > 5
    rest = np.array([counts[~likely].sum()]), np.array([expected[~likely].sum()])
    counts = np.append(counts[likely], rest[0])
    expected = np.append(expected[likely], np.maximum(rest[1], 1e-9))
    assert ((counts - expected) ** 2 / np.maximum(expected, 1)).sum() < CHI2_999
    tempered = np.log(softmax(LOGITS / temperature))
    np.testing.assert_allclose(logprobs, tempered[np.asarray(tokens)], atol=1e-4)


def test_greedy_takes_the_largest_logit_and_its_untempered_logprob():
    tokens, logprobs, *_ = jitted(LOGITS[None], params(1, temperature=0.0), np.zeros(1, np.int32))
    assert int(tokens[0]) == LOGITS.argmax()
    np.testing.assert_allclose(logprobs[0], np.log(softmax(LOGITS).max()), rtol=1e-5)


def test_a_row_draws_the_same_alone_and_among_others():
    logits = np.random.default_rng(1).normal(0, 1, (6, V)).astype(np.float32)
    mixed = DrawParams(
        np.array([0, 1, 0.7, 1, 2, 1], np.float32),
        np.array([V, 3, V, V, 9, V], np.int32),
        np.array([1, 1, 0.5, 1, 0.9, 1], np.float32),
        np.arange(12, dtype=np.uint32).reshape(6, 2),
        np.arange(6, dtype=np.int32),
    )
    count = np.arange(6, dtype=np.int32)
    together, *_ = jitted(logits, mixed, count)
    for row in range(6):
        one = slice(row, row + 1)
        alone, *_ = jitted(logits[one], jax.tree.map(lambda x, one=one: x[one], mixed), count[one])
        assert int(alone[0]) == int(together[row])


@pytest.mark.parametrize("change", ["seed", "sample", "count"])
def test_seed_sample_and_count_each_change_the_draw(change):
    n = 64
    logits = np.tile(LOGITS, (n, 1))
    zeros, ones = np.zeros(n, np.int32), np.ones(n, np.int32)
    first, *_ = jitted(logits, params(n), zeros)
    other = params(n, seed=8) if change == "seed" else params(n)
    if change == "sample":
        other = other._replace(sample=other.sample + n)
    second, *_ = jitted(logits, other, ones if change == "count" else zeros)
    assert (np.asarray(first) != np.asarray(second)).mean() > 0.3
