"""Work that runs side by side."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from txlab.config import EngineSettings
from txlab.engine.streams import Streams, streams_for
from txlab.engine.trainer import Trainer


@pytest.fixture(scope="module")
def trainer(base) -> Trainer:
    return Trainer(base.decoder, keep_tokens=128)


@pytest.fixture
def two(trainer) -> Iterator[Streams]:
    streams = Streams(trainer, tokens=128, count=2)
    yield streams
    streams.close()


def test_two_run_at_the_same_time(two):
    meeting, met = threading.Barrier(2), []

    def work(number: int, name: str) -> None:
        meeting.wait(10)
        met.append((number, name, threading.current_thread().name))

    two.run(work, (1, 2), ("a", "b"))
    assert [(number, name) for number, name, _ in sorted(met)] == [(1, "a"), (2, "b")]
    assert len({thread for _, _, thread in met}) == 2
    assert all(thread.startswith("txlab-stream") for _, _, thread in met)


def test_fewer_batches_than_streams_are_run_where_they_are_asked_for(two):
    threads = []
    two.run(lambda batch, gradients: threads.append((batch, gradients, threading.current_thread())), ["a"], [1, 2])
    two.run(lambda batch, gradients: threads.append(None), [], [1, 2])
    assert threads == [("a", 1, threading.current_thread())]


def test_one_stream_runs_in_its_callers_thread(trainer):
    alone, threads = Streams(trainer, tokens=128, count=1), []
    alone.run(lambda _: threads.append(threading.current_thread()), range(3))
    alone.close()
    assert threads == [threading.current_thread()] * 3


def test_what_the_first_raised_is_raised_when_all_have_ended(two):
    failed, ended = threading.Event(), []

    def work(number: int) -> None:
        if number == 0:
            failed.set()
            raise MemoryError("the first")
        assert failed.wait(10)
        threading.Event().wait(0.1)  # long enough for a caller who does not wait
        ended.append(number)
        raise ValueError("the second")

    with pytest.raises(MemoryError, match="the first"):
        two.run(work, range(2))
    assert ended == [1]
    two.run(ended.append, (2, 3))
    assert sorted(ended) == [1, 2, 3], "it can be used again"


def test_closing_ends_the_threads(trainer):
    before, streams = set(threading.enumerate()), Streams(trainer, tokens=128, count=2)
    meeting = threading.Barrier(2)
    streams.run(lambda _: meeting.wait(10), range(2))
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    streams.close()
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize(
    ("platform", "cores", "count"), [("cpu", 8, 2), ("cpu", 1, 1), ("cpu", None, 1), ("gpu", 8, 1)]
)
def test_how_many_there_are_by_default(base, platform, cores, count, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    elsewhere = dataclasses.replace(base, mesh=SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)])))
    assert streams_for(elsewhere, EngineSettings(train_tokens=1024)).count == count


@pytest.mark.parametrize(
    ("settings", "count", "tokens"),
    [
        (EngineSettings(train_tokens=1024, train_streams=1), 1, 1024),
        (EngineSettings(train_tokens=1024, train_streams=2), 2, 512),
        (EngineSettings(train_tokens=128, train_streams=2), 2, 128),
        (EngineSettings(train_streams=2), 2, 2048),
        (EngineSettings(train_streams=2, train_bytes=1), 2, 128),
    ],
    ids=["one", "two", "at least a block", "as many as a tiny model keeps", "as few as there may be"],
)
def test_they_share_what_the_settings_allow(base, settings, count, tokens):
    streams = streams_for(base, settings)
    assert (streams.count, streams.tokens) == (count, tokens)
    assert streams.trainer._keep_tokens == tokens, "no batch of theirs is recomputed"
