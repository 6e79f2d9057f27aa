"""The engine thread: isolation, failures, life and death."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.engine.tools import Client, answer, ask, datum, greedy, tokens
from txlab.config import EngineSettings
from txlab.engine import engine as engine_module
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.events import StateChanged
from txlab.engine.passes import PassRun
from txlab.engine.requests import (
    AdamParams,
    CreateAdapter,
    DropSnapshot,
    ExportAdapter,
    ForwardBackward,
    ImportAdapter,
    LoadSnapshot,
    OptimStep,
    RequestError,
    Sample,
    SkipSeq,
    UnloadAdapter,
)
from txlab.lora.state import LoraConfig

ADAM = AdamParams(learning_rate=0.01)


def test_others_training_beside_changes_nothing(engine, client: Client, another: Client):
    """The same requests, once alone and once among another adapter's."""
    noisy = Client(engine, "neighbour", rank=16, seed=9)
    data = [datum(30, 1), datum(50, 2)]
    for c, crowd in ((client, False), (another, True)):
        futures = []
        for _ in range(4):
            if crowd:
                futures.append(noisy.send(ForwardBackward, data=(datum(70, 3), datum(10, 4))))
                futures.append(noisy.send(OptimStep, adam=AdamParams(learning_rate=1.0, weight_decay=0.5)))
            futures.append(c.send(ForwardBackward, data=tuple(data)))
            futures.append(c.send(OptimStep, adam=ADAM))
        for future in futures:
            future.result(120)
    one, two = (c.forward(*data).logprobs for c in (client, another))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_pipelined_requests_take_effect_in_order(client: Client, another: Client):
    waited = [client.forward_backward(datum(20)).metrics["loss:sum"] for _ in range(3) if client.step(ADAM) or True]
    futures = []
    for _ in range(3):
        another.send(OptimStep, adam=ADAM)
        futures.append(another.send(ForwardBackward, data=(datum(20),)))
    np.testing.assert_allclose([f.result(60).metrics["loss:sum"] for f in futures], waited, rtol=1e-5)


def test_seq_ids_that_arrive_out_of_order_run_in_order(engine):
    answer(engine, CreateAdapter("shuffled", LoraConfig(rank=4, seed=1), "shuffled"))
    late = ask(engine, ForwardBackward("shuffled", 3, (datum(10),)))
    step = ask(engine, OptimStep("shuffled", 2, ADAM))
    assert not late.done()
    first = ask(engine, ForwardBackward("shuffled", 1, (datum(10),)))
    assert first.result(60).metrics["loss:sum"] > late.result(60).metrics["loss:sum"]
    assert step.result(1).metrics["grad_norm"] > 0
    after_gap = ask(engine, ForwardBackward("shuffled", 5, (datum(10),)))
    ask(engine, SkipSeq("shuffled", 4))
    after_gap.result(60)


def test_resume_continues_as_if_never_stopped(engine, client: Client):
    for _ in range(3):
        client.forward_backward(datum(30))
        client.step(ADAM)
    state = client.send(ExportAdapter, optimizer=True).result(60)
    assert state.step == 3
    answer(engine, ImportAdapter("resumed", 0, state, "resumed"))
    for i in range(2):
        client.forward_backward(datum(30, 1))
        client.step(ADAM)
        answer(engine, ForwardBackward("resumed", 1 + 2 * i, (datum(30, 1),)))
        answer(engine, OptimStep("resumed", 2 + 2 * i, ADAM))
    resumed = answer(engine, ExportAdapter("resumed", 5, True))
    ours = client.send(ExportAdapter, optimizer=True).result(60)
    assert resumed.step == ours.step == 5
    for name, array in ours.weights.items():
        np.testing.assert_array_equal(resumed.weights[name], array)
    answer(engine, LoadSnapshot("from state", state, "from state"))
    answer(engine, Sample("from state", tokens(4), 1, greedy(2)))


def test_a_state_that_does_not_fit_fails_its_own_request(engine, client: Client):
    state = client.send(ExportAdapter, optimizer=False).result(60)
    wrong = state.__class__(LoraConfig(rank=4), state.weights)
    with pytest.raises(RequestError, match="does not fit this base model") as error:
        answer(engine, ImportAdapter("misfit", 0, wrong, "misfit"))
    assert error.value.category == "user"


def test_one_failing_pass_fails_no_other(engine, client: Client, another: Client, monkeypatch):
    """Passes that share a batch are tried one by one when it fails; gradients of the others are as they should be."""
    real = PassRun.step

    def step(run):
        if any(t.request.model_id == client.model_id for t in run.tickets):
            raise MemoryError
        return real(run)

    monkeypatch.setattr(PassRun, "step", step)
    gate = threading.Event()
    engine.submit(CreateAdapter(client.model_id, LoraConfig(), ""), lambda _: gate.wait(10))  # holds the engine thread
    bad = client.send(ForwardBackward, data=(datum(20),))
    good = another.send(ForwardBackward, data=(datum(20),))
    gate.set()
    with pytest.raises(RequestError, match="out of memory"):
        bad.result(60)
    assert good.result(60).metrics["loss:sum"] > 0
    monkeypatch.undo()
    client.nothing_is_left()
    assert another.step(ADAM).metrics["grad_norm"] > 0


def test_unloading_fails_what_is_queued_and_later_use(engine, client: Client):
    waiting = ask(engine, ForwardBackward(client.model_id, 5, (datum(10),)))
    answer(engine, UnloadAdapter(client.model_id))
    with pytest.raises(RequestError, match="was unloaded"):
        waiting.result(60)
    with pytest.raises(RequestError, match="never created, or was unloaded"):
        client.forward_backward(datum(10))


def test_events_tell_the_story_of_an_adapter(engine, bus, client: Client):
    client.forward_backward(datum(20))
    client.step(ADAM)
    snapshot = client.snapshot("told")
    answer(engine, Sample(snapshot, tokens(4), 2, greedy(3)))
    answer(engine, UnloadAdapter(client.model_id))
    view = bus.view()
    (adapter,) = [a for a in view.adapters if a.model_id == client.model_id]
    assert (adapter.step, adapter.state, adapter.rank, adapter.tokens) == (1, "unloaded", 8, 20)
    assert len(adapter.curves["loss"]) == 1
    assert adapter.memory_bytes > 0
    mine = [s for s in view.samples if s.model_id == client.model_id]
    assert [len(s.tokens) for s in mine] == [3, 3]


def test_samples_that_outlive_their_adapter_do_not_bring_it_back(engine, bus, client: Client):
    states = []
    end = bus.listen(lambda event: states.append(event.state) if isinstance(event, StateChanged) else None)
    sampling = ask(engine, Sample(client.snapshot("outlives"), tokens(4), 1, greedy(200)))
    answer(engine, UnloadAdapter(client.model_id))
    sampling.result(120)
    answer(engine, DropSnapshot("outlives"))
    end()
    assert states[-1] == "unloaded"
    assert client.model_id not in engine._states


def test_the_second_step_compiles_nothing(client: Client, bus):
    for _ in range(2):
        client.forward_backward(datum(20))
        client.step(ADAM)
    compiles = bus.view().compiles
    for seed in range(3):
        client.forward_backward(datum(17 + seed, seed))
        client.step(ADAM)
    assert bus.view().compiles == compiles


def test_stopping_fails_what_waits_and_what_comes_later(base):
    engine = Engine(base, EngineSettings(), EventBus())
    engine.start()
    answer(engine, CreateAdapter("m", LoraConfig(rank=4), "m"))
    waiting = ask(engine, ForwardBackward("m", 2, (datum(10),)))
    running = ask(engine, Sample(None, tokens(4), 4, greedy(400)))
    engine.stop()
    for future in (waiting, running, ask(engine, OptimStep("m", 1, ADAM))):
        with pytest.raises(RequestError, match="the engine has stopped") as error:
            future.result(10)
        assert error.value.category == "server"


def test_a_stopped_engine_leaves_no_thread_and_no_memory_behind(base, monkeypatch):
    calls: list[str] = []
    for name in ("keep_freed_memory", "release_freed_memory"):
        monkeypatch.setattr(engine_module, name, lambda name=name: calls.append(name))
    before = set(threading.enumerate())
    engine = Engine(base, EngineSettings(train_tokens=256, train_streams=2), EventBus())
    engine.start()
    Client(engine, "m", rank=4).forward_backward(datum(128, 1), datum(128, 2))
    assert {t.name for t in set(threading.enumerate()) - before} == {"txlab-engine", "txlab-stream_0", "txlab-stream_1"}
    assert calls == ["keep_freed_memory"]
    engine.stop()
    assert set(threading.enumerate()) <= before
    assert calls == ["keep_freed_memory", "release_freed_memory"]


def test_a_receiver_that_raises_stops_nothing(engine):
    def broken(result):
        raise RuntimeError("gone")

    engine.submit(Sample(None, tokens(4), 1, greedy(2)), broken)
    assert len(answer(engine, Sample(None, tokens(4), 1, greedy(2))).sequences) == 1
