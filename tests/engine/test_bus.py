"""The bus and the histories that views are drawn from."""

from __future__ import annotations

import threading

import numpy as np

from txlab.engine.bus import EventBus
from txlab.engine.events import (
    AdapterCreated,
    PassCompleted,
    ProgramCompiled,
    SampleCompleted,
    SampleProgress,
    StateChanged,
    StepCompleted,
)
from txlab.lora.state import LoraConfig


def trained(bus, steps, model="m"):
    bus.publish(AdapterCreated(model, "one", LoraConfig(8), 100))
    for step in range(1, steps + 1):
        bus.publish(PassCompleted(model, loss=30.0 / step, weight=10.0, tokens=20, seconds=0.5, backward=True))
        bus.publish(PassCompleted(model, loss=10.0 / step, weight=10.0, tokens=20, seconds=0.5, backward=True))
        bus.publish(StepCompleted(model, step, 1e-3, 2.0, 400))


def test_loss_is_per_weight_over_all_passes_of_a_step():
    bus = EventBus()
    trained(bus, 4)
    (adapter,) = bus.view().adapters
    np.testing.assert_allclose(
        adapter.curves["loss"][:, [0, 1, 3]], [(1, 40, 2.0), (2, 80, 1.0), (3, 120, 2 / 3), (4, 160, 0.5)]
    )
    assert (adapter.step, adapter.tokens, adapter.tokens_per_second, adapter.memory_bytes) == (4, 160, 40.0, 400)


def test_forward_only_passes_are_not_training():
    bus = EventBus()
    trained(bus, 1)
    bus.publish(PassCompleted("m", 99.0, 1.0, 5, 0.1, backward=False))
    assert bus.view().adapters[0].loss == 2.0


def test_a_view_is_a_copy():
    bus = EventBus()
    trained(bus, 1)
    before = bus.view()
    bus.publish(StateChanged("m", "training"))
    bus.publish(StepCompleted("m", 2, 1e-3, 2.0, 400))
    assert before.adapters[0].state == "idle"
    assert before.adapters[0].step == 1
    assert bus.view().adapters[0].state == "training"


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


def test_wait_wakes_on_an_event_and_on_wake():
    bus = EventBus()
    for act in (lambda: bus.publish(ProgramCompiled("p", 0.1)), bus.wake):
        seen = bus.view().version
        timer = threading.Timer(0.05, act)
        timer.start()
        assert bus.wait(seen, timeout=10) > seen
    assert bus.wait(bus.view().version, timeout=0.01) == bus.view().version


def progress(key: tuple[int, int], *drawn: int, ended: bool = False) -> SampleProgress:
    tokens = np.array(drawn, np.int32)
    return SampleProgress(key, "m", np.array([1], np.int32), tokens, -tokens.astype(np.float32), ended)


def test_samples_stream_until_they_end():
    bus = EventBus(samples=2)
    for event in (progress((0, 0), 5, 6), progress((0, 1), 7), progress((0, 0), 8), progress((9, 0), 1)):
        bus.publish(event)
    assert [live.tokens.tolist() for live in bus.view().streaming] == [[7], [5, 6, 8]], "newest first, bounded"
    assert bus.view().streaming[1].logprobs.tolist() == [-5, -6, -8]
    bus.publish(progress((0, 0), 4, ended=True))
    assert [live.tokens.tolist() for live in bus.view().streaming] == [[7]]
