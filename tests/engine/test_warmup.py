"""Programs that are compiled ahead."""

from __future__ import annotations

import threading

import pytest

from tests.engine.tools import Client, datum
from txlab.config import EngineSettings
from txlab.engine.bus import EventBus
from txlab.engine.compiles import watch_compiles
from txlab.engine.engine import Engine
from txlab.engine.requests import AdamParams
from txlab.engine.warmup import WarmUp, rehearse


@pytest.fixture
def compiled():
    """Names of the programs that are compiled from now on."""
    names: list[str] = []
    end = watch_compiles(lambda name, _: names.append(name))
    yield names
    end()


@pytest.mark.parametrize(("streams", "size", "rank"), [(1, 640, 5), (2, 768, 6)])  # no other test trains at these
def test_a_step_after_the_rehearsal_compiles_nothing(base, compiled, streams, size, rank):
    for _ in rehearse(base, size, rank):
        pass
    assert {"jit(layer_forward)", "jit(layer_backward)", "jit(head_backward)", "jit(embed)"} <= set(compiled)
    engine = Engine(base, EngineSettings(train_tokens=size * streams, train_streams=streams), EventBus())
    engine.start()
    client = Client(engine, "a", rank=rank)
    compiled.clear()
    for lengths in ((50, 60, 70, 20, 1), (128, 120, 110, 100), (30,)):
        client.forward_backward(*[datum(n, n) for n in lengths])
        client.step(AdamParams())
    engine.stop()
    assert compiled == []


def test_it_runs_only_while_the_engine_is_idle():
    idle, steps, ended = threading.Event(), [], threading.Event()

    def rehearsal():
        for step in range(3):
            steps.append(step)
            yield

    warm_up = WarmUp(rehearsal(), idle, ended.set)
    assert not ended.wait(0.1)
    assert steps == [0], "it waits before the second"
    idle.set()
    assert ended.wait(10)
    assert steps == [0, 1, 2]
    warm_up.stop()


def test_it_ends_when_the_engine_stops(base):
    engine = Engine(base, EngineSettings(train_tokens=256), EventBus())
    engine.start()
    engine.warm_up()
    engine.stop()
    assert not any(thread.name == "txlab-warm-up" for thread in threading.enumerate())


def test_a_failure_is_logged_and_harms_nothing(caplog):
    def rehearsal():
        yield
        raise MemoryError("too small")

    idle = threading.Event()
    idle.set()
    warm_up = WarmUp(rehearsal(), idle)
    warm_up.stop()
    assert "warming up failed" in caplog.text
