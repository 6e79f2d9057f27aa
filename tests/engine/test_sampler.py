"""Sampling through the engine: what comes out, alone and in company."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from tests.engine.tools import Client, answer, ask, datum, greedy, tokens
from txlab.config import EngineSettings
from txlab.engine import decoding, sampler
from txlab.engine.engine import Engine
from txlab.engine.events import EventBus
from txlab.engine.requests import AdamParams, ForwardBackward, RequestError, Sample, SamplingParams
from txlab.models.attention import segment_attention

_ids = (f"snapshot-{n}" for n in itertools.count())


@pytest.fixture
def trained(client: Client) -> str:
    """A snapshot of an adapter that has learned something."""
    for _ in range(3):
        client.forward_backward(datum(40, 1), datum(30, 2))
        client.step(AdamParams(learning_rate=0.01))
    return client.snapshot(next(_ids))


def sample(engine, prompt, params, n=1, snapshot=None, **kw):
    return answer(engine, Sample(snapshot, prompt, n, params, **kw))


def test_greedy_is_the_argmax_of_the_whole_text(base, engine):
    prompt = tokens(11)
    (sequence,) = sample(engine, prompt, greedy(20)).sequences
    text = np.concatenate((prompt, sequence.tokens))[None, :-1]
    positions = np.arange(text.shape[1])[None]
    hidden, _ = base.decoder(text, positions, segment_attention(np.ones_like(positions)))
    expected = jax.nn.log_softmax(base.decoder.unembed(hidden)[0, len(prompt) - 1 :])
    assert (sequence.tokens == expected.argmax(axis=-1)).all()
    np.testing.assert_allclose(sequence.logprobs, expected.max(axis=-1), atol=1e-4)


@pytest.mark.parametrize("params", [SamplingParams(24, seed=5, stop=()), greedy(24)], ids=["seeded", "greedy"])
def test_logprobs_are_those_of_forward(client: Client, trained: str, params):
    engine, prompt = client.engine, tokens(9)
    (sequence,) = sample(engine, prompt, params, snapshot=trained).sequences
    text = np.concatenate((prompt, sequence.tokens))
    (logprobs,) = client.forward(datum(1).__class__(text[:-1], text[1:])).logprobs
    np.testing.assert_allclose(sequence.logprobs, logprobs[len(prompt) - 1 :], atol=1e-4)


def test_alone_and_in_any_batch_the_same(engine, trained):
    """Prompts, lengths, adapters and parameters mixed; more sequences than rows."""
    requests = [
        Sample(
            (None, trained)[i % 2],
            tokens(1 + 7 * i % 60, i),
            1 + i % 3,
            SamplingParams(3 + 5 * i % 30, (0.0, 1.0, 0.7)[i % 3], (-1, 20)[i % 2], (1.0, 0.9)[i // 2 % 2], i, ()),
        )
        for i in range(12)
    ]
    alone = [answer(engine, request) for request in requests]
    together = [future.result(120) for future in [ask(engine, request) for request in requests]]
    for request, one, other in zip(requests, alone, together, strict=True):
        assert len(one.sequences) == request.num_samples
        for a, b in zip(one.sequences, other.sequences, strict=True):
            assert len(a.tokens) == request.params.max_tokens
            assert (a.tokens == b.tokens).all()
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_seeds_and_samples_differ(engine):
    prompt = tokens(6)

    def draw(seed):
        params = SamplingParams(16, temperature=60.0, seed=seed, stop=())
        return [tuple(s.tokens) for s in sample(engine, prompt, params, n=4).sequences]

    first = draw(2**40 + 1)
    assert len(set(first)) == 4
    assert draw(2**40 + 1) == first
    assert not set(draw(1)) & set(first), "the high bits of a seed count"
    assert draw(None) != draw(None)


def test_stop_ids_end_a_sequence_and_are_included(engine):
    prompt = tokens(8)
    (free,) = sample(engine, prompt, SamplingParams(20, seed=1, stop=())).sequences
    assert (free.stop_reason, len(free.tokens)) == ("length", 20)
    stop = int(free.tokens[5])
    first = list(free.tokens).index(stop)
    (ended,) = sample(engine, prompt, SamplingParams(20, seed=1, stop=(stop, 319))).sequences
    assert ended.stop_reason == "stop"
    assert list(ended.tokens) == list(free.tokens[: first + 1])
    assert len(ended.logprobs) == first + 1


def test_stop_strings_end_a_sequence_across_token_borders(base, engine):
    prompt = tokens(8)
    params = SamplingParams(40, temperature=5.0, seed=3, stop=())
    (free,) = sample(engine, prompt, params).sequences
    text = base.tokenizer.decode(free.tokens)
    stop = text[6:9]
    (ended,) = sample(engine, prompt, SamplingParams(40, 5.0, seed=3, stop=(stop,))).sequences
    assert ended.stop_reason == "stop"
    n = len(ended.tokens)
    assert list(ended.tokens) == list(free.tokens[:n])
    assert stop in base.tokenizer.decode(free.tokens[:n])
    assert stop not in base.tokenizer.decode(free.tokens[: n - 1])


def test_eos_is_implicit_unless_stops_are_given(base, engine, client: Client):
    """An adapter that has learned to say EOS at once."""
    (eos,) = base.eos_ids
    text = np.array([*tokens(4), eos], np.int32)
    d = datum(1).__class__(text[:-1], text[1:], {"weights": np.array([0, 0, 0, 1], np.float32)})
    for _ in range(12):
        client.forward_backward(d)
        client.step(AdamParams(learning_rate=0.05))
    snapshot = client.snapshot(next(_ids))
    (implicit,) = sample(engine, text[:-1], greedy(6, stop=None), snapshot=snapshot).sequences
    assert (list(implicit.tokens), implicit.stop_reason) == ([eos], "stop")
    (never,) = sample(engine, text[:-1], greedy(6, stop=()), snapshot=snapshot).sequences
    assert (len(never.tokens), int(never.tokens[0]), never.stop_reason) == (6, eos, "length")


def test_prompt_logprobs_and_top_k(client: Client, trained: str):
    prompt = tokens(20, 4)
    result = sample(client.engine, prompt, greedy(1), snapshot=trained, prompt_logprobs=True, topk_prompt_logprobs=5)
    (expected,) = client.forward(datum(1).__class__(prompt[:-1], prompt[1:])).logprobs
    assert np.isnan(result.prompt_logprobs[0])
    np.testing.assert_allclose(result.prompt_logprobs[1:], expected, atol=1e-4)
    top = result.topk_prompt_logprobs
    assert top.token_ids.shape == top.logprobs.shape == (20, 5)
    assert (top.logprobs[0] == -99999.0).all()
    assert (np.diff(top.logprobs[1:], axis=1) <= 0).all()
    for i in range(1, 20):
        where = np.flatnonzero(top.token_ids[i] == prompt[i])
        if len(where):
            np.testing.assert_allclose(top.logprobs[i][where[0]], expected[i - 1], atol=1e-4)
        else:
            assert expected[i - 1] <= top.logprobs[i, -1]
    only_top = sample(client.engine, prompt, greedy(1), snapshot=trained, topk_prompt_logprobs=3)
    assert only_top.prompt_logprobs is None
    np.testing.assert_array_equal(only_top.topk_prompt_logprobs.token_ids, top.token_ids[:, :3])


def test_a_snapshot_does_not_follow_the_training(client: Client, trained: str):
    prompt = tokens(10)
    before = sample(client.engine, prompt, greedy(12), snapshot=trained).sequences[0].tokens
    for _ in range(5):
        client.forward_backward(datum(40, 9))
        client.step(AdamParams(learning_rate=0.05))
    after = sample(client.engine, prompt, greedy(12), snapshot=trained).sequences[0].tokens
    newer = sample(client.engine, prompt, greedy(12), snapshot=client.snapshot(next(_ids))).sequences[0].tokens
    assert (before == after).all()
    assert (before != newer).any()


def test_long_generations_grow_the_cache(engine):
    prompt = tokens(200)
    short = ask(engine, Sample(None, tokens(5), 3, greedy(40)))
    long = ask(engine, Sample(None, prompt, 1, greedy(300)))
    assert len(long.result(120).sequences[0].tokens) == 300
    alone = sample(engine, tokens(5), greedy(40), n=1)
    assert (short.result(1).sequences[2].tokens == alone.sequences[0].tokens).all()


def test_a_prompt_prefilled_in_pieces_is_the_same(engine, monkeypatch):
    prompts = [tokens(n, n) for n in (130, 97, 3)]
    whole = [sample(engine, prompt, greedy(12)).sequences[0] for prompt in prompts]
    monkeypatch.setattr(sampler, "PREFILL_PIECE", 32)
    futures = [ask(engine, Sample(None, prompt, 1, greedy(12))) for prompt in prompts]
    for one, future in zip(whole, futures, strict=True):
        (pieces,) = future.result(120).sequences
        assert (pieces.tokens == one.tokens).all()
        np.testing.assert_allclose(pieces.logprobs, one.logprobs, atol=1e-4)


def test_sampling_goes_on_beside_training(client: Client, another: Client):
    futures = [ask(client.engine, Sample(None, tokens(5), 2, greedy(60))) for _ in range(4)]
    passes = [another.send(ForwardBackward, data=(datum(100, i),)) for i in range(6)]
    assert all(len(f.result(120).sequences) == 2 for f in futures)
    assert all(p.result(120).metrics["tokens:sum"] == 100 for p in passes)


def test_unknown_snapshots_are_refused(engine):
    with pytest.raises(RequestError, match="'nowhere' is gone"):
        sample(engine, tokens(4), greedy(2), snapshot="nowhere")


def test_a_failing_batch_fails_its_requests_and_no_later_one(base, monkeypatch):
    engine = Engine(base, EngineSettings(sample_rows=4), EventBus())
    engine.start()
    try:
        real = decoding.decode

        def broken(*args):
            raise MemoryError

        monkeypatch.setattr(decoding, "decode", broken)
        with pytest.raises(RequestError, match="out of memory") as error:
            sample(engine, tokens(4), greedy(2))
        assert error.value.category == "server"
        monkeypatch.setattr(decoding, "decode", real)
        assert len(sample(engine, tokens(4), greedy(2)).sequences[0].tokens) == 2
    finally:
        engine.stop()
