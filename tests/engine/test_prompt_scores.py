"""What a request is told about its prompt, against a plain forward of the whole text."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.tools import Client, answer, ask, datum, greedy, log_softmax, slow_logits, tokens
from txlab.engine import decoding, sampler
from txlab.engine.requests import AdamParams, Sample, SamplingParams

CHI2_999 = 400.0  # chi-square of 319 degrees of freedom exceeds it once in 1000; fewer degrees, more rarely


def score(engine, prompt, n=1, params=None, snapshot=None, **asked):
    return answer(engine, Sample(snapshot, prompt, n, params or SamplingParams(1, seed=3), **asked))


def targets(prompt, k=3, seed=9):
    """K random tokens in the place of each token of a prompt but the first; a third of the cells is -1."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 320, (len(prompt) - 1, k)).astype(np.int32)
    return np.where(rng.random(ids.shape) < 1 / 3, -1, ids)


def everything(prompt, **more):
    return {
        "prompt_logprobs": True,
        "topk_prompt_logprobs": 5,
        "target_prompt_logprobs": targets(prompt),
        "prompt_alt_tokens_k": 3,
    } | more


@pytest.fixture
def head_slices(monkeypatch) -> list[np.ndarray]:
    """The positions that go through the head, slice by slice."""
    seen = []
    real = decoding.score

    def score(config, k, alternatives, base, own, routes, hidden, asked):
        seen.append(asked.positions)
        return real(config, k, alternatives, base, own, routes, hidden, asked)

    monkeypatch.setattr(decoding, "score", score)
    return seen


@pytest.mark.parametrize("length", [2, 20, 130, 300], ids="{} tokens".format)
def test_scores_are_those_of_a_plain_forward(base, engine, length):
    prompt = tokens(length, length)
    asked = everything(prompt)
    result = score(engine, prompt, params=SamplingParams(1, temperature=0.7, seed=1), **asked)
    expected = log_softmax(slow_logits(base, prompt))[:-1]  # (P - 1, V)
    rows = np.arange(length - 1)

    assert result.prompt_logprobs.shape == (length,)
    assert np.isnan(result.prompt_logprobs[0])
    np.testing.assert_allclose(result.prompt_logprobs[1:], expected[rows, prompt[1:]], atol=1e-4)

    top = result.topk_prompt_logprobs
    assert (top.token_ids[0] == 0).all()
    assert (top.logprobs[0] == np.float32(-99999.0)).all()
    np.testing.assert_array_equal(top.token_ids[1:], np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(top.logprobs[1:], -np.sort(-expected, axis=1)[:, :5], atol=1e-4)

    wanted = asked["target_prompt_logprobs"]
    known = np.where(wanted >= 0, expected[rows[:, None], wanted], 0)
    np.testing.assert_allclose(result.target_prompt_logprobs, known, atol=1e-4)

    alts = result.prompt_alt_tokens
    assert alts.tokens.shape == alts.logprobs.shape == (length - 1, 3)
    np.testing.assert_allclose(alts.logprobs, expected[rows[:, None], alts.tokens], atol=1e-4)


def test_scores_are_those_of_the_adapter(client: Client):
    """Also those of other tokens: forward scores whatever the targets name."""
    for _ in range(3):
        client.forward_backward(datum(40, 1))
        client.step(AdamParams(learning_rate=0.02))
    prompt, other = tokens(20, 4), tokens(19, 5)
    named = np.stack((prompt[1:], other), axis=1)
    snapshot = client.snapshot("scored")
    result = score(client.engine, prompt, snapshot=snapshot, prompt_logprobs=True, target_prompt_logprobs=named)
    own, others = client.forward(*(datum(1).__class__(prompt[:-1], t) for t in (prompt[1:], other))).logprobs
    np.testing.assert_allclose(result.prompt_logprobs[1:], own, atol=1e-4)
    np.testing.assert_allclose(result.target_prompt_logprobs, np.stack((own, others), axis=1), atol=1e-4)


def test_nothing_is_scored_unless_asked_for(engine, head_slices):
    result = score(engine, tokens(40))
    assert head_slices == []
    assert result.prompt_logprobs is result.topk_prompt_logprobs is None
    assert result.target_prompt_logprobs is result.prompt_alt_tokens is None
    assert result.sequences[0].topk_logprobs is None


def test_top_k_alone(engine):
    prompt = tokens(20)
    result = score(engine, prompt, topk_prompt_logprobs=3)
    assert result.prompt_logprobs is None
    whole = score(engine, prompt, topk_prompt_logprobs=320).topk_prompt_logprobs
    np.testing.assert_array_equal(result.topk_prompt_logprobs.token_ids, whole.token_ids[:, :3])
    assert (np.sort(whole.token_ids[1:]) == np.arange(320)).all()


def test_last_n_scores_the_end_alone(engine, head_slices):
    prompt = tokens(300, 2)
    whole = score(engine, prompt, prompt_logprobs=True, topk_prompt_logprobs=2)
    assert [len(at) for at in head_slices] == [sampler.PIECE] * 10, (
        "the logits of more positions are never alive together"
    )
    head_slices.clear()
    part = score(engine, prompt, prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=20)
    assert [(at[0], len(at)) for at in head_slices] == [(279, sampler.PIECE)]
    assert np.isnan(part.prompt_logprobs[:280]).all()
    np.testing.assert_allclose(part.prompt_logprobs[280:], whole.prompt_logprobs[280:], atol=1e-5)
    assert (part.topk_prompt_logprobs.logprobs[:280] == np.float32(-99999.0)).all()
    assert (part.topk_prompt_logprobs.token_ids[:280] == 0).all()
    np.testing.assert_array_equal(part.topk_prompt_logprobs.token_ids[280:], whole.topk_prompt_logprobs.token_ids[280:])


def test_last_n_does_not_concern_targets_and_alternatives(engine):
    prompt = tokens(30, 2)
    whole = score(engine, prompt, **everything(prompt))
    part = score(engine, prompt, **everything(prompt, prompt_logprobs_last_n=1))
    assert np.isfinite(part.prompt_logprobs).sum() == 1
    np.testing.assert_array_equal(part.target_prompt_logprobs, whole.target_prompt_logprobs)
    np.testing.assert_array_equal(part.prompt_alt_tokens.tokens, whole.prompt_alt_tokens.tokens)


def test_rows_before_the_first_target_are_not_scored(engine, head_slices):
    prompt = tokens(300, 2)
    named = np.full((299, 1), -1, np.int32)
    named[298] = 7
    result = score(engine, prompt, target_prompt_logprobs=named)
    assert [at[0] for at in head_slices] == [298], "what precedes was kept"
    assert (result.target_prompt_logprobs[:298] == 0).all()
    assert result.target_prompt_logprobs[298, 0] < 0


def test_a_prompt_of_one_token_has_nothing_to_score(engine):
    result = score(engine, tokens(1), prompt_logprobs=True, topk_prompt_logprobs=2, prompt_alt_tokens_k=4)
    assert np.isnan(result.prompt_logprobs).tolist() == [True]
    assert result.topk_prompt_logprobs.logprobs.shape == (1, 2)
    assert result.prompt_alt_tokens.tokens.shape == (0, 4)


def test_a_prompt_that_leaves_room_for_one_token_is_scored(engine):
    prompt = tokens(engine.limits.max_context - 1)
    result = score(engine, prompt, params=greedy(1), prompt_logprobs=True)
    assert np.isfinite(result.prompt_logprobs[1:]).all()
    assert len(result.sequences[0].tokens) == 1


def test_pieces_of_a_prompt_are_scored_like_the_whole(engine, monkeypatch):
    prompt = tokens(200, 8)
    whole = score(engine, prompt, **everything(prompt))
    monkeypatch.setattr(sampler, "PIECE", 8)
    pieces = score(engine, prompt, **everything(prompt))
    np.testing.assert_allclose(pieces.prompt_logprobs, whole.prompt_logprobs, atol=1e-4)
    np.testing.assert_allclose(pieces.target_prompt_logprobs, whole.target_prompt_logprobs, atol=1e-4)
    np.testing.assert_array_equal(pieces.topk_prompt_logprobs.token_ids, whole.topk_prompt_logprobs.token_ids)
    np.testing.assert_array_equal(pieces.prompt_alt_tokens.tokens, whole.prompt_alt_tokens.tokens)


def test_a_prompt_of_more_samples_than_rows_is_scored_once(engine, head_slices):
    result = score(engine, tokens(20), n=20, prompt_logprobs=True)
    assert len(head_slices) == 1
    assert len(result.sequences) == 20


def test_scores_are_the_same_alone_and_in_company(engine):
    prompts = [tokens(n, n) for n in (3, 70, 20, 140, 9)]
    requests = [
        Sample(None, prompt, 1 + i % 2, SamplingParams(2, 1.5, seed=i), **everything(prompt))
        for i, prompt in enumerate(prompts)
    ]
    alone = [answer(engine, request) for request in requests]
    together = [future.result(120) for future in [ask(engine, request) for request in requests]]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.prompt_logprobs, other.prompt_logprobs, atol=1e-4)
        np.testing.assert_array_equal(one.topk_prompt_logprobs.token_ids, other.topk_prompt_logprobs.token_ids)
        np.testing.assert_allclose(one.target_prompt_logprobs, other.target_prompt_logprobs, atol=1e-4)
        np.testing.assert_array_equal(one.prompt_alt_tokens.tokens, other.prompt_alt_tokens.tokens)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_alternatives_pass_a_chi_square_test(base, engine, temperature):
    prompt, n = tokens(4), 20_000
    params = SamplingParams(1, temperature, top_k=2, top_p=0.5, seed=8)  # neither cut concerns the alternatives
    alts = score(engine, prompt, params=params, prompt_alt_tokens_k=n).prompt_alt_tokens
    for row, logits in enumerate(slow_logits(base, prompt)[:-1]):
        expected = n * np.exp(log_softmax(logits / temperature))
        counts = np.bincount(alts.tokens[row], minlength=len(expected)).astype(float)
        rare = expected < 5
        counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
        assert ((counts - expected) ** 2 / np.maximum(expected, 1)).sum() < CHI2_999


def test_greedy_alternatives_are_the_likeliest_token(engine):
    result = score(engine, tokens(12), params=greedy(1), topk_prompt_logprobs=1, prompt_alt_tokens_k=3)
    likeliest = result.topk_prompt_logprobs.token_ids[1:]
    np.testing.assert_array_equal(result.prompt_alt_tokens.tokens, np.repeat(likeliest, 3, axis=1))


def test_alternatives_come_from_the_seed(engine):
    prompt = np.full(40, 17, np.int32)

    def draw(seed, k=8):
        params = SamplingParams(1, temperature=50.0, seed=seed)
        return score(engine, prompt, params=params, prompt_alt_tokens_k=k).prompt_alt_tokens.tokens

    first = draw(2**40 + 1)
    np.testing.assert_array_equal(draw(2**40 + 1), first)
    np.testing.assert_array_equal(draw(2**40 + 1, k=3), first[:, :3])
    for other in (draw(1), draw(None), np.roll(first, 1, axis=0), np.roll(first, 1, axis=1)):
        assert (other == first).mean() < 0.1


def test_alternatives_are_independent_of_the_continuation(engine):
    """At a temperature that levels all tokens, equal noise would draw equal tokens."""
    prompt = tokens(30)
    params = SamplingParams(29, temperature=1e6, seed=5, stop=())
    plain = score(engine, prompt, n=4, params=params)
    asked = score(engine, prompt, n=4, params=params, prompt_alt_tokens_k=4)
    drawn = np.stack([s.tokens for s in plain.sequences], axis=1)  # (29, 4)
    np.testing.assert_array_equal(drawn, np.stack([s.tokens for s in asked.sequences], axis=1))
    assert (drawn == asked.prompt_alt_tokens.tokens).mean() < 0.1
