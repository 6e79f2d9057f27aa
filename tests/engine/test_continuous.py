"""Continuous batching: who is computed when, and what is not computed again. Results never depend on it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.tools import answer, ask, greedy, tokens
from txlab.config import EngineSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.events import SampleCompleted, SampleProgress
from txlab.engine.jobs import Job
from txlab.engine.kv_cache import token_bytes
from txlab.engine.requests import CancelSample, RequestError, Sample, SampledSequence, SampleResult, SamplingParams
from txlab.engine.sampler import PIECE, PIECES, Sampler
from txlab.lora.adapter import Adapter, initial_weights
from txlab.lora.bank import Snapshot
from txlab.lora.state import LoraConfig
from txlab.models.base import BaseModel
from txlab.models.mesh import replicated


def make(base: BaseModel, **limits: int) -> Sampler:
    """A sampler that a test steps itself."""
    return Sampler(base, **({"rows": 8, "steps": 4, "cache_limit": 1 << 30, "prefix_limit": 1 << 26} | limits))


def finish(sampler: Sampler, *jobs: Job) -> list[SampleResult]:
    for _ in range(1000):
        if not sampler.busy:
            return [job.result() for job in jobs]
        sampler.step()
    raise AssertionError("it never ends")


def lone(base: BaseModel, request: Sample, snapshot: Snapshot | None = None) -> SampleResult:
    """The request alone, with nothing kept from before."""
    sampler = make(base, prefix_limit=0)
    return finish(sampler, sampler.add(request, snapshot))[0]


def assert_same(one: SampledSequence, other: SampledSequence) -> None:
    assert one.tokens.tolist() == other.tokens.tolist()
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """How many pieces of prompts each dispatch holds."""
    seen: list[int] = []
    real = Sampler._prefill_pieces

    def prefill_pieces(self, pieces, size):
        seen.append(len(pieces))
        return real(self, pieces, size)

    monkeypatch.setattr(Sampler, "_prefill_pieces", prefill_pieces)
    return seen


def snapshot(base: BaseModel, seed: int) -> Snapshot:
    lora = LoraConfig(rank=4, seed=seed)
    weights = initial_weights(base.config, lora, replicated(base.mesh))
    return Snapshot(Adapter(lora, {name: f._replace(b=f.b + 0.02) for name, f in weights.items()}), None)


def test_a_second_turn_computes_only_what_is_new(base, computed):
    sampler, prompt = make(base), tokens(100)
    (first,) = finish(sampler, sampler.add(Sample(None, prompt, 1, greedy(40)), None))
    again = Sample(None, np.concatenate((prompt, first.sequences[0].tokens, tokens(30, 5))), 1, greedy(12))
    computed.clear()
    (second,) = finish(sampler, sampler.add(again, None))
    assert second.prompt_cache_hit_tokens == 139, "all but the newest token were in the cache"
    assert sum(computed) == 1
    assert first.prompt_cache_hit_tokens == 0
    assert_same(second.sequences[0], lone(base, again).sequences[0])


def test_another_snapshot_shares_nothing(base):
    sampler, request = make(base), Sample(None, tokens(60), 1, greedy(8))
    one, other = snapshot(base, 1), snapshot(base, 2)
    for of in (one, other, None, one):
        (result,) = finish(sampler, sampler.add(request, of))
        assert_same(result.sequences[0], lone(base, request, of).sequences[0])
    assert result.prompt_cache_hit_tokens == 59, "the first one's was kept"


@pytest.mark.parametrize("length", [300, 5, 1])
def test_samples_of_one_prompt_prefill_it_once(base, computed, length):
    sampler, params = make(base), SamplingParams(20, seed=3, stop=())
    request = Sample(None, tokens(length), 12, params)
    (result,) = finish(sampler, sampler.add(request, None))
    assert sum(computed) <= -(-length // PIECE) * (1 if length > 16 else 12)
    for drawn, alone in zip(result.sequences, lone(base, request).sequences, strict=True):
        assert_same(drawn, alone)
    assert len({tuple(sequence.tokens) for sequence in result.sequences}) == 12


def test_requests_that_come_together_share_their_beginning(base, computed):
    sampler, system = make(base), tokens(150)
    requests = [Sample(None, np.concatenate((system, tokens(10, n))), 1, greedy(2)) for n in range(4)]
    results = finish(sampler, *[sampler.add(request, None) for request in requests])
    assert sum(computed) <= -(-160 // PIECE) + 3
    assert [result.prompt_cache_hit_tokens for result in results] == [0, 150, 150, 150]
    for request, result in zip(requests, results, strict=True):
        assert_same(result.sequences[0], lone(base, request).sequences[0])


def test_who_shares_goes_on_alone_where_the_other_is_cancelled(base):
    sampler, prompt = make(base), tokens(600)
    first, second = (sampler.add(Sample(None, prompt, 1, greedy(5)), None) for _ in range(2))
    sampler.step()
    sampler.cancel(first)
    (result,) = finish(sampler, second)
    assert_same(result.sequences[0], lone(base, second.request).sequences[0])


def test_others_decode_while_a_long_prompt_is_prefilled(base, computed):
    sampler = make(base)
    short = sampler.add(Sample(None, tokens(9), 1, greedy(60)), None)
    sampler.step()
    long = sampler.add(Sample(None, tokens(1500, 1), 1, greedy(4)), None)
    while long.sequences[0].filled < 1499:
        before = len(short.sequences[0].tokens)
        sampler.step()
        assert len(short.sequences[0].tokens) == before + 4, "no step leaves it waiting"
    assert len(computed) >= 1499 // (PIECE * PIECES[0])
    for job in (short, long):
        assert_same(finish(sampler, job)[0].sequences[0], lone(base, job.request).sequences[0])


def test_a_short_prompt_does_not_wait_for_a_long_one(base):
    sampler = make(base)
    long = sampler.add(Sample(None, tokens(1500, 1), 1, greedy(4)), None)
    short = sampler.add(Sample(None, tokens(9), 1, greedy(4)), None)
    sampler.step()
    sampler.step()
    assert short.done
    assert long.sequences[0].filled < 1499


@pytest.mark.parametrize("params", [greedy(400), SamplingParams(400, seed=1, stop=())], ids=["greedy", "seeded"])
def test_the_youngest_gives_way_and_comes_back(base, params):
    """Four texts grow until the cache holds but two of their width."""
    limit = 4 * 256 * token_bytes(base.config, np.dtype(np.float32))
    sampler = make(base, cache_limit=limit, steps=16)
    requests = [Sample(None, tokens(40, n), 1, params) for n in range(4)]
    jobs = [sampler.add(request, None) for request in requests]
    gave_way = False
    while sampler.busy:
        sampler.step()
        _, rows, waiting = sampler.occupancy
        gave_way |= waiting > 0 and any(job.sequences[0].tokens for job in jobs if not job.done)
        assert rows == 0 or sampler.cache_bytes <= limit
    assert gave_way
    for job, request in zip(jobs, requests, strict=True):
        assert_same(job.result().sequences[0], lone(base, request).sequences[0])


def test_rows_of_one_length_end_as_one_waits(base):
    """Nobody waits behind a row that has ended for longer than until the next look."""
    sampler = make(base, rows=2, steps=16)
    jobs = [sampler.add(Sample(None, tokens(1, n), 1, greedy(length)), None) for n, length in enumerate((3, 60, 5))]
    sampler.step()
    assert jobs[0].done
    assert len(jobs[1].sequences[0].tokens) == 3
    sampler.step()
    assert jobs[2].sequences[0].tokens
    finish(sampler)


def test_nothing_is_held_when_the_last_one_is_cancelled(base):
    sampler = make(base)
    job = sampler.add(Sample(None, tokens(5), 3, greedy(40)), None)
    sampler.step()
    assert sampler.cache_bytes > 0
    sampler.cancel(job)
    assert (sampler.cache_bytes, sampler.occupancy) == (0, (0, 0, 0))


def test_an_adapter_set_is_laid_out_only_when_somebody_new_comes(base, monkeypatch):
    import txlab.engine.sampler as module

    made = []
    real = module.combine
    monkeypatch.setattr(module, "combine", lambda *args: made.append(args[0]) or real(*args))
    sampler, one, other = make(base), snapshot(base, 1), snapshot(base, 2)
    for of in (one, one, other, one, other):
        finish(sampler, sampler.add(Sample(None, tokens(5), 1, greedy(3)), of))
    assert len(made) == 4, "alone in turn"
    jobs = [sampler.add(Sample(None, tokens(5), 1, greedy(30)), of) for of in (one, other)]
    sampler.step()
    jobs.append(sampler.add(Sample(None, tokens(5, 1), 1, greedy(3)), one))
    finish(sampler, *jobs)
    assert len(made) == 5
    assert sampler.occupancy == (0, 0, 0)


def test_tokens_stream_to_the_bus_and_a_cancelled_sample_leaves_it(base):
    bus, seen = EventBus(), []
    publish = bus.publish
    bus.publish = lambda event: seen.append(event) or publish(event)
    engine = Engine(base, EngineSettings(), bus)
    engine.start()
    try:
        (sequence,) = answer(engine, Sample(None, tokens(5), 1, greedy(20))).sequences
        parts = [event for event in seen if isinstance(event, SampleProgress)]
        assert np.concatenate([part.tokens for part in parts]).tolist() == sequence.tokens.tolist()
        assert [part.ended for part in parts] == [False] * (len(parts) - 1) + [True]
        seen.clear()
        (quiet,) = answer(engine, Sample(None, tokens(5), 1, greedy(20), announced=False)).sequences
        assert quiet.tokens.tolist() == sequence.tokens.tolist()
        assert not [event for event in seen if isinstance(event, SampleProgress | SampleCompleted)]
        request = Sample(None, tokens(5), 1, greedy(400))
        future = ask(engine, request)
        version = 0
        while not bus.view().streaming:
            version = bus.wait(version, 10)
        answer(engine, CancelSample(request))
        with pytest.raises(RequestError, match="cancelled"):
            future.result(10)
        assert bus.view().streaming == ()
    finally:
        engine.stop()
