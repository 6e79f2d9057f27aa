"""How busy the engine is, and what its memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import pytest

from tests.engine.tools import Client, answer, ask, datum, greedy, tokens
from txlab.config import EngineSettings
from txlab.engine import load as load_module
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.events import EngineLoad
from txlab.engine.kept_steps import KeptSteps
from txlab.engine.load import INTERVAL, LoadMeter
from txlab.engine.requests import (
    AdamParams,
    ForwardBackward,
    OptimStep,
    PauseAdapter,
    Sample,
    UnloadAdapter,
)
from txlab.engine.sampler import Sampler
from txlab.engine.scheduler import Scheduler, Ticket
from txlab.lora.adapter import zero_gradient, zero_moments
from txlab.lora.bank import AdapterBank
from txlab.lora.state import LoraConfig
from txlab.models.base import BaseModel
from txlab.models.mesh import replicated

ADAM = AdamParams(learning_rate=0.01)


class Parts:
    """The parts of an engine without its thread, and a clock that is set by hand."""

    def __init__(self, base: BaseModel):
        self.base = base
        self.bank = AdapterBank(base.config, replicated(base.mesh), 1 << 30)
        self.scheduler = Scheduler(pass_tokens=1000)
        self.sampler = Sampler(base, rows=4, steps=2, cache_limit=1 << 20, prefix_limit=1 << 20)
        self.kept = KeptSteps(1 << 20, copy=False)
        self.settings = EngineSettings(sample_rows=4, cache_bytes=1 << 20)
        self.time = 100.0
        self.told: list[EngineLoad] = []
        parts = (base, self.bank, self.scheduler, self.sampler, self.kept, self.settings)
        self.meter = LoadMeter(*parts, self.told.append, lambda: self.time)

    def queue(self, *seq_ids: int) -> None:
        self.scheduler.open("m")
        for seq_id in seq_ids:
            self.scheduler.add(Ticket(OptimStep("m", seq_id, ADAM), lambda _: None, seq_id))

    @property
    def counted(self) -> int:
        """Device memory beside the base's, as the meter sees it."""
        return self.meter.measure().device_bytes - self.base.memory_bytes


@pytest.fixture
def counted_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device says what it holds, as on CPUs."""
    monkeypatch.setattr(LoadMeter, "_reported_bytes", lambda _: 0)


@pytest.fixture
def parts(base: BaseModel, counted_only: None) -> Parts:
    return Parts(base)


def test_a_busy_loop_tells_now_and_then_and_the_last_value_before_it_rests(parts: Parts):
    for seq_id in range(1, 101):
        parts.queue(seq_id)
        parts.meter.tell(resting=False)
    assert [load.queued for load in parts.told] == [1]
    parts.time += INTERVAL
    parts.meter.tell(resting=False)
    parts.queue(101)
    parts.meter.tell(resting=False)
    assert [load.queued for load in parts.told] == [1, 100]
    parts.meter.tell(resting=True)
    assert [load.queued for load in parts.told] == [1, 100, 101]


def test_what_has_not_changed_is_not_told_again(parts: Parts):
    for _ in range(5):
        parts.meter.tell(resting=True)
        parts.time += INTERVAL
    assert len(parts.told) == 1


def test_memory_of_adapters_is_what_they_hold(parts: Parts):
    assert parts.counted == 0
    adapter = parts.bank.create("m", LoraConfig(rank=4, seed=1))
    assert parts.counted == adapter.memory_bytes
    adapter.gradient = zero_gradient(adapter.weights)
    assert parts.counted == adapter.memory_bytes
    adapter.moments, adapter.gradient = zero_moments(adapter.weights), None
    assert parts.counted == pytest.approx(adapter.memory_bytes, abs=8)  # Adam's count of steps
    parts.bank.drop("m")
    assert parts.counted == 0


def test_weights_that_snapshots_share_count_once(parts: Parts):
    adapter = parts.bank.create("m", LoraConfig(rank=4, seed=1))
    alone = parts.counted
    for snapshot in "ab":
        parts.bank.take_snapshot(snapshot, "m")
    assert parts.counted == alone
    adapter.weights = jax.tree.map(lambda array: array + 1, adapter.weights)  # as an optimizer step does
    assert parts.counted == 2 * alone
    for snapshot in "ab":
        parts.bank.drop_snapshot(snapshot)
    assert parts.counted == alone


def test_a_fork_shares_what_it_was_made_of(parts: Parts):
    adapter = parts.bank.create("m", LoraConfig(rank=4, seed=1))
    adapter.moments = zero_moments(adapter.weights)
    alone = parts.counted
    parts.bank.put("fork", adapter)
    assert parts.counted == alone


def test_the_sampler_says_rows_cache_and_what_waits(parts: Parts):
    jobs = [parts.sampler.add(Sample(None, tokens(40, seed), 3, greedy(40)), None) for seed in range(2)]
    parts.sampler.step()
    load = parts.meter.measure()
    assert (load.rows, load.max_rows, load.waiting_rows) == (4, 4, 2)
    assert 0 < load.cache_bytes <= load.max_cache_bytes == 1 << 20
    assert load.device_bytes == parts.base.memory_bytes + load.cache_bytes
    while parts.sampler.busy:
        parts.sampler.step()
    assert all(job.done for job in jobs)
    load = parts.meter.measure()
    assert (load.rows, load.waiting_rows, load.cache_bytes) == (0, 0, 0)
    assert load.device_bytes > parts.base.memory_bytes, "prompts are kept"


def test_kept_steps_are_host_memory(parts: Parts):
    adapter = parts.bank.create("m", LoraConfig(rank=4, seed=1))
    parts.kept.keep("m", adapter)
    assert parts.meter.measure().host_bytes == parts.kept.host_bytes > 0


def test_devices_that_say_more_are_believed(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    parts = Parts(base)
    monkeypatch.setattr(LoadMeter, "_reported_bytes", lambda _: 10 * base.memory_bytes)
    assert parts.meter.measure().device_bytes == 10 * base.memory_bytes


@contextmanager
def running(base: BaseModel) -> Iterator[tuple[Engine, EventBus, list[EngineLoad]]]:
    bus, loads = EventBus(), []
    bus.listen(lambda event: loads.append(event) if isinstance(event, EngineLoad) else None)
    engine = Engine(base, EngineSettings(train_tokens=256, sample_rows=8), bus)
    engine.start()
    try:
        yield engine, bus, loads
    finally:
        engine.stop()


def awaited(bus: EventBus, holds: Callable[[EngineLoad], bool]) -> EngineLoad:
    """The first load of which that is true."""
    while not holds(load := (view := bus.view()).load):
        assert bus.wait(view.version, timeout=60) > view.version, f"nothing more is told, and it is {load}"
    return load


def test_an_engine_tells_its_load_and_that_it_has_come_to_rest(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load_module, "INTERVAL", 0.0)
    with running(base) as (engine, bus, loads):
        client = Client(engine, "m", rank=4)
        answer(engine, PauseAdapter("m"))
        for _ in range(3):
            client.begin(datum(20))
        assert awaited(bus, lambda load: load.queued == 3).rows == 0
        for future in [ask(engine, Sample(None, tokens(20, n), 8, greedy(20))) for n in range(2)]:
            future.result(120)
        assert awaited(bus, lambda load: load.rows == 0).queued == 3
        assert max(load.rows for load in loads) == bus.view().load.max_rows == 8
        assert max(load.waiting_rows for load in loads) in (8, 16)  # both may arrive before the first step
        answer(engine, UnloadAdapter("m"))
        assert awaited(bus, lambda load: load.queued == 0) == loads[-1]


@pytest.mark.usefixtures("counted_only")
def test_training_holds_what_its_adapter_holds(base: BaseModel):
    with running(base) as (engine, bus, _):
        client = Client(engine, "m", rank=4)
        weights = awaited(bus, lambda load: load.device_bytes > base.memory_bytes).device_bytes - base.memory_bytes
        client.forward_backward(datum(20))
        client.step(ADAM)
        answer(engine, ForwardBackward("m", 3, (datum(20),)))
        load = awaited(bus, lambda load: load.device_bytes == base.memory_bytes + 4 * weights)
        assert load.host_bytes > 0, "the step before is kept"
