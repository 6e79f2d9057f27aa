"""Sampling through the engine: what comes out, alone and in company."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tests.engine.tools import Client, answer, ask, datum, greedy, log_softmax, slow_logits, tokens
from txlab.config import EngineSettings
from txlab.engine import decoding, sampler
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.requests import AdamParams, CancelSample, ForwardBackward, RequestError, Sample, SamplingParams

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
    expected = log_softmax(slow_logits(base, np.concatenate((prompt, sequence.tokens)))[len(prompt) - 1 : -1])
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


def whole_part(text: str, start: int) -> str:
    """Two characters of a text, from ``start`` on, of which none stands for broken bytes: those may yet be mended."""
    parts = (text[at : at + 2] for at in range(start, len(text) - 1))
    return next(part for part in parts if "\ufffd" not in part)


def test_stop_strings_end_a_sequence_across_token_borders(base, engine):
    prompt = tokens(8)
    params = SamplingParams(40, temperature=5.0, seed=3, stop=())
    (free,) = sample(engine, prompt, params).sequences
    text = base.tokenizer.decode(free.tokens)
    stop = whole_part(text, 6)
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


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
def test_top_k_of_samples_is_of_the_distribution_that_drew_them(base, engine, temperature):
    prompt = tokens(9)
    params = SamplingParams(21, temperature, top_k=3, seed=2, stop=())
    (sequence,) = sample(engine, prompt, params, topk_sample_logprobs=5).sequences
    logits = slow_logits(base, np.concatenate((prompt, sequence.tokens)))[len(prompt) - 1 : -1]
    expected = log_softmax(logits / (temperature or 1.0))  # (21, V)
    top = sequence.topk_logprobs
    np.testing.assert_array_equal(top.token_ids, np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(top.logprobs, -np.sort(-expected, axis=1)[:, :5], atol=1e-4)
    drawn = top.token_ids == sequence.tokens[:, None]
    assert drawn.any(axis=1).all()
    np.testing.assert_array_equal(top.logprobs[drawn], sequence.logprobs)


def test_only_who_asks_pays_for_and_gets_top_k(engine, monkeypatch):
    widths = []
    real = decoding.draw_next

    def draw_next(config, k, *args):
        widths.append(k)
        return real(config, k, *args)

    monkeypatch.setattr(decoding, "draw_next", draw_next)
    prompts = [tokens(5, i) for i in range(3)]
    plain = [sample(engine, prompt, greedy(12)).sequences[0] for prompt in prompts]
    assert set(widths) == {0}
    asked = [
        Sample(None, prompt, 1, greedy(12), topk_sample_logprobs=(0, 2, 320)[i]) for i, prompt in enumerate(prompts)
    ]
    for k, alone, future in zip((0, 2, 320), plain, [ask(engine, request) for request in asked], strict=True):
        (sequence,) = future.result(120).sequences
        assert (sequence.tokens == alone.tokens).all()
        assert (sequence.topk_logprobs is None) if k == 0 else (sequence.topk_logprobs.token_ids.shape == (12, k))
    assert set(widths) <= {0, 8, 320}


def test_top_k_ends_where_a_stop_cuts(base, engine):
    prompt = tokens(8)
    (free,) = sample(engine, prompt, greedy(12)).sequences
    stop = base.tokenizer.decode(free.tokens[:5])
    (ended,) = sample(engine, prompt, greedy(12, stop=(stop,)), topk_sample_logprobs=2).sequences
    assert ended.topk_logprobs.token_ids.shape == (len(ended.tokens), 2)
    assert len(ended.tokens) < 12


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
    monkeypatch.setattr(sampler, "PIECE", 8)
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


class Listener:
    """Collects what a sample says as it goes on."""

    def __init__(self, samples: int):
        self.tokens: list[list[int]] = [[] for _ in range(samples)]
        self.logprobs: list[list[float]] = [[] for _ in range(samples)]
        self.calls = 0

    def __call__(self, index, tokens, logprobs):
        assert len(tokens) == len(logprobs) > 0
        self.calls += 1
        self.tokens[index] += tokens.tolist()
        self.logprobs[index] += logprobs.tolist()


@pytest.mark.parametrize("stop", ["", "text", "id"])
def test_what_is_told_on_the_way_is_the_result(base, engine, stop):
    prompt, params = tokens(8), SamplingParams(30, temperature=2.0, seed=4, stop=())
    free = sample(engine, prompt, params, n=3).sequences
    text = base.tokenizer.decode(free[0].tokens[:16])
    stops = {"": (), "text": (whole_part(text, 6),), "id": (int(free[0].tokens[10]),)}[stop]
    listener = Listener(3)
    result = sample(engine, prompt, replace(params, stop=stops), n=3, on_tokens=listener)
    assert listener.tokens == [list(s.tokens) for s in result.sequences]
    assert listener.logprobs == [list(s.logprobs) for s in result.sequences]
    assert listener.calls >= 4, "each sequence speaks for itself, and the longest more than once"
    if stop:
        assert len(result.sequences[0].tokens) < 30


def test_a_listener_that_fails_is_ignored(engine, caplog):
    def fail(index, tokens, logprobs):
        raise KeyError("nobody")

    assert len(sample(engine, tokens(4), greedy(20), on_tokens=fail).sequences[0].tokens) == 20
    assert "the receiver of sampled tokens failed" in caplog.text


def test_a_cancelled_sample_ends_and_harms_no_other(client: Client, trained: str):
    """It is cancelled in the middle of its decoding; more samples than rows, so that some have not begun."""
    engine = client.engine
    others = [Sample(None, tokens(5 + i, i), 1, SamplingParams(40, seed=i, stop=())) for i in range(3)]
    alone = [answer(engine, other) for other in others]
    heard: list[int] = []

    def on_tokens(index, new, logprobs):
        if not heard:
            engine.submit(CancelSample(doomed), lambda result: None)
        heard.extend(new)

    doomed = Sample(trained, tokens(9), 12, SamplingParams(300, seed=1, stop=()), on_tokens=on_tokens)
    futures = [ask(engine, request) for request in (others[0], doomed, *others[1:])]
    with pytest.raises(RequestError, match="cancelled") as error:
        futures.pop(1).result(120)
    assert error.value.category == "user"
    for one, future in zip(alone, futures, strict=True):
        np.testing.assert_array_equal(future.result(120).sequences[0].tokens, one.sequences[0].tokens)
    assert 0 < len(heard) < 12 * 300
    assert answer(engine, CancelSample(doomed)) is None, "once more is harmless"
    assert not engine._sampler.busy


def test_a_waiting_sample_can_be_cancelled(engine):
    """The rows are taken by another; the waiting one never begins."""
    heard: list[int] = []
    waiting = Sample(None, tokens(5), 1, greedy(9), on_tokens=lambda *told: heard.append(0))
    first = ask(engine, Sample(None, tokens(6), 8, SamplingParams(60, seed=1, stop=())))
    future = ask(engine, waiting)
    assert answer(engine, CancelSample(waiting)) is None
    with pytest.raises(RequestError, match="cancelled"):
        future.result(120)
    assert len(first.result(120).sequences) == 8
    sample(engine, tokens(5), greedy(9))  # would have been drawn beside it
    assert heard == []


def test_cancelling_what_has_ended_is_harmless(engine):
    request = Sample(None, tokens(5), 1, greedy(3))
    answer(engine, request)
    assert answer(engine, CancelSample(request)) is None
    assert len(answer(engine, request).sequences[0].tokens) == 3


def test_unknown_snapshots_are_refused(engine):
    with pytest.raises(RequestError, match="'nowhere' is gone"):
        sample(engine, tokens(4), greedy(2), snapshot="nowhere")


def test_a_failing_batch_fails_its_requests_and_no_later_one(base, monkeypatch):
    engine = Engine(base, EngineSettings(sample_rows=4), EventBus())
    engine.start()
    try:
        real = decoding.draw_next

        def broken(*args):
            raise MemoryError

        monkeypatch.setattr(decoding, "draw_next", broken)
        with pytest.raises(RequestError, match="out of memory") as error:
            sample(engine, tokens(4), greedy(2))
        assert error.value.category == "server"
        monkeypatch.setattr(decoding, "draw_next", real)
        assert len(sample(engine, tokens(4), greedy(2)).sequences[0].tokens) == 2
    finally:
        engine.stop()
