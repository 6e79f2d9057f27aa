"""The bus: what is read of it, who waits for it, who listens, and that it stays small."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from txlab.engine.bus import STREAMED_TOKENS, EventBus
from txlab.engine.events import (
    AdapterCreated,
    EngineLoad,
    MetricsLogged,
    PassCompleted,
    ProgramCompiled,
    SampleCompleted,
    SampleProgress,
    StateChanged,
    StepCompleted,
)
from txlab.lora.state import LoraConfig


def made(name: str) -> AdapterCreated:
    return AdapterCreated(name, name, LoraConfig(8), 100)


def progress(key: tuple[int, int], *drawn: int, ended: bool = False) -> SampleProgress:
    tokens = np.array(drawn, np.int32)
    return SampleProgress(key, "m", np.array([1], np.int32), tokens, -tokens.astype(np.float32), ended)


# ------------------------------------------------------------------------------------------ reading


def test_a_view_is_a_copy():
    bus = EventBus()
    bus.publish(made("m"))
    bus.publish(StepCompleted("m", 1, 1e-3, 2.0, 400))
    before = bus.view()
    bus.publish(StateChanged("m", "training"))
    bus.publish(StepCompleted("m", 2, 1e-3, 2.0, 400))
    assert before.adapters[0].state == "idle"
    assert before.adapters[0].step == 1
    assert bus.view().adapters[0].state == "training"
    assert len(before.adapters[0].curves["grad_norm"]) == 1


def test_samples_are_bounded_and_newest_first():
    bus = EventBus(samples=3)
    for n in range(5):
        bus.publish(SampleCompleted(None, np.zeros(1, np.int32), np.array([n]), np.zeros(1), "stop", 0.1))
    assert [int(s.tokens[0]) for s in bus.view().samples] == [4, 3, 2]


def test_events_of_unknown_adapters_are_ignored_and_compiles_counted():
    bus = EventBus()
    bus.publish(StateChanged("nobody", "failed"))
    bus.publish(ProgramCompiled("decode", 1.5))
    assert (bus.view().adapters, bus.view().compiles, bus.view().compile_seconds) == ((), 1, 1.5)


def test_the_load_is_the_last_one_told():
    bus = EventBus()
    assert bus.view().load == EngineLoad()
    bus.publish(EngineLoad(queued=3))
    bus.publish(EngineLoad(queued=1, rows=2))
    assert bus.view().load == EngineLoad(queued=1, rows=2)


def test_wait_wakes_on_an_event_and_on_wake():
    bus = EventBus()
    for act in (lambda: bus.publish(ProgramCompiled("p", 0.1)), bus.wake):
        seen = bus.view().version
        timer = threading.Timer(0.05, act)
        timer.start()
        assert bus.wait(seen, timeout=10) > seen
    assert bus.wait(bus.view().version, timeout=0.01) == bus.view().version


# ---------------------------------------------------------------------------------------- streaming


def test_samples_stream_until_they_end():
    bus = EventBus(samples=2)
    for event in (progress((0, 0), 5, 6), progress((0, 1), 7), progress((0, 0), 8), progress((9, 0), 1)):
        bus.publish(event)
    assert [live.tokens.tolist() for live in bus.view().streaming] == [[7], [5, 6, 8]], "newest first, bounded"
    assert bus.view().streaming[1].logprobs.tolist() == [-5, -6, -8]
    bus.publish(progress((0, 0), 4, ended=True))
    assert [live.tokens.tolist() for live in bus.view().streaming] == [[7]]


def test_of_a_long_sample_the_newest_tokens_stay():
    bus = EventBus()
    drawn = 5 * STREAMED_TOKENS + 7
    for start in range(0, drawn, 3):
        bus.publish(progress((0, 0), *range(start, min(start + 3, drawn))))
    (live,) = bus.view().streaming
    assert live.tokens.tolist() == list(range(drawn - STREAMED_TOKENS, drawn))
    assert live.logprobs.tolist() == (-live.tokens).tolist()
    assert live.drawn == drawn


# ---------------------------------------------------------------------------------------- unloading


def test_the_oldest_of_the_unloaded_are_forgotten():
    bus = EventBus(unloaded=2)
    for name in "abcde":
        bus.publish(made(name))
    for name in "cabe":
        bus.publish(StateChanged(name, "unloaded"))
    assert [adapter.model_id for adapter in bus.view().adapters] == ["b", "d", "e"]
    bus.publish(made("b"))
    for name in "d":
        bus.publish(StateChanged(name, "unloaded"))
    assert [adapter.model_id for adapter in bus.view().adapters] == ["b", "d", "e"], "b is loaded again"


def test_ten_thousand_adapters_that_come_and_go_leave_no_trace():
    bus = EventBus(unloaded=10)
    for number in range(10_000):
        name = str(number)
        bus.publish(made(name))
        bus.publish(StepCompleted(name, 1, 1e-3, 1.0, 100))
        bus.publish(StateChanged(name, "unloaded"))
    assert [adapter.model_id for adapter in bus.view().adapters] == [str(n) for n in range(9_990, 10_000)]
    assert len(bus._adapters) == len(bus._unloaded) == 10


# ---------------------------------------------------------------------------------------- listeners


def test_a_listener_hears_everything_until_it_ends():
    bus, heard = EventBus(), []
    end = bus.listen(heard.append)
    bus.publish(made("m"))
    bus.publish(EngineLoad(queued=1))
    end()
    end()  # harmless
    bus.publish(EngineLoad(queued=2))
    assert heard == [made("m"), EngineLoad(queued=1)]


def test_the_same_function_may_listen_twice():
    bus, heard = EventBus(), []
    end = bus.listen(heard.append)
    bus.listen(heard.append)
    bus.publish(EngineLoad(queued=1))
    assert len(heard) == 2
    end()
    bus.publish(EngineLoad(queued=2))
    assert len(heard) == 3


def test_a_listener_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture):
    bus, heard = EventBus(), []
    bus.listen(lambda event: 1 / 0)
    bus.listen(heard.append)
    with caplog.at_level(logging.ERROR):
        bus.publish(EngineLoad(queued=1))
    assert heard == [EngineLoad(queued=1)]
    assert bus.view().load.queued == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_listener_may_publish_read_and_end_itself():
    bus = EventBus()
    ends: list[Callable[[], None]] = []

    def answer(event: object) -> None:
        ends.pop()()
        bus.publish(EngineLoad(queued=bus.view().load.queued + 1))

    ends.append(bus.listen(answer))
    bus.publish(EngineLoad(queued=1))
    assert bus.view().load.queued == 2


def test_points_are_told_to_those_who_want_them():
    bus, points = EventBus(), []
    end = bus.listen_to_points(points.append)
    bus.publish(made("m"))
    bus.publish(PassCompleted("m", 30.0, 10.0, 20, 0.5, True))
    bus.publish(StepCompleted("m", 1, 1e-3, 2.0, 400))
    bus.publish(MetricsLogged("m", {"reward": 0.5}))
    bus.publish(MetricsLogged("nobody", {"reward": 0.5}))
    end()
    bus.publish(MetricsLogged("m", {"reward": 0.5}))
    step, reward = points
    assert (step.model_id, step.step, step.tokens) == ("m", 1, 20)
    assert step.metrics == {"loss": 3.0, "grad_norm": 2.0, "learning_rate": 1e-3}
    assert (reward.step, reward.tokens, reward.metrics) == (1, 20, {"reward": 0.5})
    assert abs(reward.time - time.time()) < 60


# ------------------------------------------------------------------------------------- many threads


def test_no_last_value_is_lost_where_many_threads_publish_and_a_viewer_is_slow():
    """Eight adapters, each published from a thread of its own, and one that reads now and then."""
    bus, steps = EventBus(), 2000
    names = [str(number) for number in range(8)]
    heard: list[object] = []
    bus.listen(heard.append)
    seen: list[list[int]] = []
    done = threading.Event()

    def publish(name: str) -> None:
        bus.publish(made(name))
        for step in range(1, steps + 1):
            bus.publish(StepCompleted(name, step, 1e-3, float(step), 100))
            bus.publish(EngineLoad(queued=step))

    def look() -> None:
        version = 0
        while not done.is_set():
            version = bus.wait(version, timeout=0.1)
            seen.append(sorted(adapter.step for adapter in bus.view().adapters))
            time.sleep(0.05)

    viewer = threading.Thread(target=look)
    viewer.start()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(publish, names))
    done.set()
    viewer.join()
    view = bus.view()
    assert view.version == len(heard) == 8 * (1 + 2 * steps)
    assert view.load == EngineLoad(queued=steps)
    assert sorted(adapter.model_id for adapter in view.adapters) == names
    for adapter in view.adapters:
        assert (adapter.step, adapter.grad_norm) == (steps, steps)
        assert adapter.curves["grad_norm"][:, 3].tolist() == list(range(1, steps + 1))
    assert seen, "the viewer looked"
