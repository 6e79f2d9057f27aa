"""Steering adapters: pause, stop, rename, copy, rewind, fork, while others train beside them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest

from tests.engine.tools import Client, answer, ask, datum, greedy, tokens
from txlab.config import EngineSettings
from txlab.engine.bus import AdapterView, EventBus
from txlab.engine.engine import Engine
from txlab.engine.events import StateChanged
from txlab.engine.passes import PassRun
from txlab.engine.requests import (
    AdamParams,
    CopyAdapter,
    ExportAdapter,
    ForkAdapter,
    ForwardBackward,
    ImportAdapter,
    OptimStep,
    PauseAdapter,
    RenameAdapter,
    Request,
    RequestError,
    ResumeAdapter,
    RewindAdapter,
    Sample,
    StopAdapter,
    TakeSnapshot,
    UnloadAdapter,
)
from txlab.lora.state import AdapterState

ADAM = AdamParams(learning_rate=0.01, weight_decay=0.1)
LONG = tuple(datum(250, seed) for seed in range(3))  # of several micro-batches; two of them may share a run


def train(client: Client, steps: range) -> list[float]:
    """A pass and a step for each number, on data of that number; the losses."""
    losses = []
    for number in steps:
        losses.append(client.forward_backward(datum(30, number)).metrics["loss:sum"])
        client.step(ADAM)
    return losses


def state_of(engine: Engine, model_id: str) -> AdapterState:
    return answer(engine, CopyAdapter(model_id))


def same(one: AdapterState, two: AdapterState) -> bool:
    """Whether weights, moments and step are equal, bit by bit."""
    groups = [(one.weights, two.weights), (one.first_moment, two.first_moment), (one.second_moment, two.second_moment)]
    return one.step == two.step and all(np.array_equal(a[name], b[name]) for a, b in groups for name in a)


def view_of(bus: EventBus, model_id: str) -> AdapterView:
    return next(adapter for adapter in reversed(bus.view().adapters) if adapter.model_id == model_id)


class Halt:
    """The first run of passes, after the first of its micro-batches."""

    def __init__(self):
        self.models: list[str] = []  # whose passes share the run
        self._reached, self._go_on = threading.Event(), threading.Event()

    def wait(self, run: PassRun) -> None:
        """Called by the engine."""
        if not self._reached.is_set():
            self.models = [ticket.request.model_id for ticket in run.tickets]
            self._reached.set()
            assert self._go_on.wait(60)

    def act(self, engine: Engine, request: Request) -> None:
        """Submit a request while the run stands still, and let it go on."""
        assert self._reached.wait(60)
        ask(engine, request)
        self._go_on.set()


@pytest.fixture
def halt(monkeypatch: pytest.MonkeyPatch) -> Halt:
    real, halt = PassRun.step, Halt()

    def step(run: PassRun):
        batches = real(run)
        halt.wait(run)
        return batches

    monkeypatch.setattr(PassRun, "step", step)
    return halt


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """Keep the engine's thread from everything while requests are submitted."""
    gate = threading.Event()
    engine.submit(ResumeAdapter("nobody"), lambda _: gate.wait(60))
    yield
    gate.set()


def stopped(future: Future) -> RequestError:
    with pytest.raises(RequestError, match="stopped from the lab: the run of adapter 'adapter-") as error:
        future.result(60)
    return error.value


# ------------------------------------------------------------------------------------------------ pause


def test_a_paused_adapter_waits_and_loses_nothing(engine, bus, client: Client, another: Client):
    """Passes, steps, snapshots and exports wait, in order; others train, and it is sampled, meanwhile."""
    snapshot = client.snapshot(f"before {client.model_id}")
    answer(engine, PauseAdapter(client.model_id))
    futures = [client.begin(datum(30, 0)), client.send(OptimStep, adam=ADAM), client.begin(datum(30, 1))]
    futures += [client.send(ExportAdapter, optimizer=True), client.send(TakeSnapshot, snapshot_id="paused")]
    losses = train(another, range(1))
    assert len(answer(engine, Sample(snapshot, tokens(4), 1, greedy(3))).sequences) == 1
    assert not any(future.done() for future in futures)
    assert view_of(bus, client.model_id).state == "paused"
    answer(engine, ResumeAdapter(client.model_id))
    assert futures[0].result(60).metrics["loss:sum"] == losses[0]
    assert same(futures[3].result(60), state_of(engine, another.model_id))
    futures[4].result(60)
    assert view_of(bus, client.model_id).state == "idle"


def test_a_pause_lets_the_running_pass_end(engine, bus, client: Client, halt: Halt):
    states: list[str] = []
    end = bus.listen(lambda e: isinstance(e, StateChanged) and e.model_id == client.model_id and states.append(e.state))
    running = client.begin(*LONG)
    halt.act(engine, PauseAdapter(client.model_id))
    next_one = client.begin(datum(30))
    assert len(running.result(60).logprobs) == len(LONG)
    answer(engine, PauseAdapter(client.model_id))  # once more: no effect
    assert not next_one.done()
    assert states[-1] == "paused"
    answer(engine, ResumeAdapter(client.model_id))
    next_one.result(60)
    end()


def test_a_paused_adapter_can_be_unloaded(engine, bus, client: Client):
    answer(engine, PauseAdapter(client.model_id))
    waiting = client.begin(datum(10))
    answer(engine, UnloadAdapter(client.model_id))
    with pytest.raises(RequestError, match="was unloaded"):
        waiting.result(60)
    assert view_of(bus, client.model_id).state == "unloaded"


@pytest.mark.parametrize(
    "request_of",
    [
        PauseAdapter,
        ResumeAdapter,
        StopAdapter,
        CopyAdapter,
        lambda m: RenameAdapter(m, "x"),
        lambda m: RewindAdapter(m, 0),
    ],
)
def test_who_is_not_there_cannot_be_steered(engine, request_of):
    with pytest.raises(RequestError, match="'nobody'"):
        answer(engine, request_of("nobody"))


# ------------------------------------------------------------------------------------------------- stop


def test_a_stop_fails_what_waits_and_drops_the_gradient(engine, bus, client: Client, another: Client):
    client.forward_backward(datum(40, 5))  # accumulated
    answer(engine, PauseAdapter(client.model_id))
    waiting = [client.begin(datum(30)), client.send(OptimStep, adam=ADAM), client.send(ExportAdapter, optimizer=True)]
    ahead = ask(engine, ForwardBackward(client.model_id, 99, (datum(10),)))
    answer(engine, StopAdapter(client.model_id))
    for future in (*waiting, ahead):
        assert stopped(future).category == "user"
    assert view_of(bus, client.model_id).state == "stopped", "it is paused no more"
    answer(engine, ResumeAdapter(client.model_id))
    with pytest.raises(RequestError, match="a run that was stopped"):
        client.forward_backward(datum(10))  # one of those that number 99 waited for
    client._seq = iter(range(100, 200))
    assert train(client, range(2)) == train(another, range(2))
    assert same(state_of(engine, client.model_id), state_of(engine, another.model_id))


@pytest.mark.parametrize("end", [StopAdapter, lambda model_id: RewindAdapter(model_id, 1)])
def test_the_dropped_pass_is_not_in_the_curves(engine, bus, client: Client, another: Client, end):
    for one in (client, another):
        train(one, range(1))
    client.forward_backward(datum(90, 7))
    answer(engine, end(client.model_id))
    answer(engine, ResumeAdapter(client.model_id))
    for one in (client, another):
        train(one, range(1, 3))
    mine, expected = (view_of(bus, one.model_id) for one in (client, another))
    assert mine.curves.keys() == expected.curves.keys()
    for name, points in expected.curves.items():
        columns = [0, 1, 3]  # without the seconds
        np.testing.assert_array_equal(mine.curves[name][:, columns], points[:, columns])
    assert (mine.loss, mine.tokens, mine.step) == (expected.loss, expected.tokens, expected.step)


def test_a_stop_in_the_middle_of_a_shared_pass_harms_no_other(engine, client: Client, another: Client, halt: Halt):
    with held(engine):
        ended, kept = client.begin(*LONG), another.begin(*LONG)
    halt.act(engine, StopAdapter(client.model_id))
    stopped(ended)
    result = kept.result(60)
    assert halt.models == [client.model_id, another.model_id]
    another.step(ADAM)
    reference = Client(engine, f"{client.model_id} alone")
    expected = reference.forward_backward(*LONG)
    reference.step(ADAM)
    assert result.metrics == expected.metrics
    assert same(state_of(engine, another.model_id), state_of(engine, reference.model_id))
    answer(engine, ResumeAdapter(client.model_id))
    client.nothing_is_left()


def test_an_unload_in_the_middle_of_a_shared_pass_harms_no_other(engine, bus, client: Client, another: Client, halt):
    with held(engine):
        ended, kept = client.begin(*LONG), another.begin(*LONG)
        waiting = client.send(OptimStep, adam=ADAM)
    halt.act(engine, UnloadAdapter(client.model_id))
    with pytest.raises(RequestError, match="was unloaded"):
        waiting.result(60)
    assert ended.result(60).metrics == kept.result(60).metrics, "what is on the device ends"
    assert halt.models == [client.model_id, another.model_id]
    another.step(ADAM)
    reference = Client(engine, f"{client.model_id} alone")
    reference.forward_backward(*LONG)
    reference.step(ADAM)
    assert same(state_of(engine, another.model_id), state_of(engine, reference.model_id))
    gone = view_of(bus, client.model_id)
    assert (gone.state, gone.tokens, gone.loss) == ("unloaded", 0, None)


def test_a_stop_ends_the_samples_of_its_snapshots_alone(engine, client: Client, another: Client):
    mine, other = (c.snapshot(f"of {c.model_id}") for c in (client, another))
    with held(engine):
        ended = ask(engine, Sample(mine, tokens(4), 3, greedy(400)))
        goes_on = ask(engine, Sample(other, tokens(4), 1, greedy(40)))
        engine.submit(StopAdapter(client.model_id), lambda _: None)
    stopped(ended)
    assert len(goes_on.result(60).sequences[0].tokens) == 40
    assert len(answer(engine, Sample(mine, tokens(4), 1, greedy(3))).sequences) == 1


@pytest.mark.parametrize(("end", "message"), [(StopAdapter, "stopped from the lab"), (UnloadAdapter, "was unloaded")])
def test_passes_that_are_tried_again_are_taken_back(engine, client: Client, another: Client, monkeypatch, end, message):
    """A shared pass fails, its parts are to be tried one by one, and then one of them is ended."""
    real, failed = PassRun.step, threading.Event()

    def step(run: PassRun):
        if len(run.tickets) == 2 and not failed.is_set():
            failed.set()
            engine.submit(end(client.model_id), lambda _: None)
            raise MemoryError
        return real(run)

    monkeypatch.setattr(PassRun, "step", step)
    with held(engine):
        ended, kept = client.begin(*LONG), another.begin(*LONG)
    with pytest.raises(RequestError, match=message):
        ended.result(60)
    assert len(kept.result(60).logprobs) == len(LONG)


def test_a_stopped_adapter_is_told_of_its_next_step_at_once(engine, client: Client, halt: Halt):
    """Nothing of it counts as running any more."""
    ended = client.begin(*LONG)
    halt.act(engine, StopAdapter(client.model_id))
    stopped(ended)
    stopped(client.send(OptimStep, adam=ADAM))
    answer(engine, ResumeAdapter(client.model_id))
    client.nothing_is_left()


# ------------------------------------------------------------------------------------ names and copies


def test_a_new_name_is_seen_and_told_in_errors(engine, bus, client: Client):
    answer(engine, RenameAdapter(client.model_id, "pirate"))
    assert view_of(bus, client.model_id).name == "pirate"
    with pytest.raises(RequestError, match="step 9 of adapter 'pirate' is not kept"):
        answer(engine, RewindAdapter(client.model_id, 9))


def test_a_copy_is_of_this_moment(engine, client: Client):
    train(client, range(2))
    answer(engine, PauseAdapter(client.model_id))
    later = client.begin(datum(30)), client.send(OptimStep, adam=ADAM)
    state = state_of(engine, client.model_id)
    answer(engine, ResumeAdapter(client.model_id))
    assert later[1].result(60).metrics["step"] == 3
    assert state.step == 2
    assert answer(engine, CopyAdapter(client.model_id, optimizer=False)).first_moment is None


# ----------------------------------------------------------------------------------------------- rewind


def test_a_rewound_adapter_trains_as_it_did_the_first_time(engine, bus, client: Client):
    losses = train(client, range(4))
    end = state_of(engine, client.model_id)
    client.forward_backward(datum(70, 9))  # a gradient that must not be there afterwards
    answer(engine, RewindAdapter(client.model_id, 1))
    view = view_of(bus, client.model_id)
    assert (view.step, view.kept_steps) == (1, (0, 1, 2, 3, 4))
    assert state_of(engine, client.model_id).step == 1
    assert train(client, range(1, 4)) == losses[1:]
    assert same(state_of(engine, client.model_id), end)


def test_a_rewind_to_the_beginning_and_forward_again(engine, client: Client):
    beginning = state_of(engine, client.model_id)
    losses = train(client, range(2))
    end = state_of(engine, client.model_id)
    answer(engine, RewindAdapter(client.model_id, 0))
    assert same(state_of(engine, client.model_id), beginning)
    answer(engine, RewindAdapter(client.model_id, 2))
    assert same(state_of(engine, client.model_id), end)
    answer(engine, RewindAdapter(client.model_id, 0))
    assert train(client, range(2)) == losses


def test_what_runs_and_waits_is_done_on_the_rewound_weights(engine, client: Client, halt: Halt, monkeypatch):
    fresh = Client(engine, f"{client.model_id} from the start")
    with monkeypatch.context() as patch:
        patch.setattr(Halt, "wait", lambda halt, run: None)
        train(client, range(1))
        expected = fresh.forward_backward(*LONG).metrics["loss:sum"]
        fresh.step(ADAM)
    running, step = client.begin(*LONG), client.send(OptimStep, adam=ADAM)
    halt.act(engine, RewindAdapter(client.model_id, 0))
    assert running.result(60).metrics["loss:sum"] == expected
    assert step.result(60).metrics["step"] == 1
    assert same(state_of(engine, client.model_id), state_of(engine, fresh.model_id))


def test_snapshots_stay_as_they_are(engine, client: Client):
    train(client, range(2))
    snapshot = client.snapshot(f"trained {client.model_id}")
    before = answer(engine, Sample(snapshot, tokens(6), 1, greedy(8))).sequences[0]
    answer(engine, RewindAdapter(client.model_id, 0))
    after = answer(engine, Sample(snapshot, tokens(6), 1, greedy(8))).sequences[0]
    np.testing.assert_array_equal(before.tokens, after.tokens)
    np.testing.assert_array_equal(before.logprobs, after.logprobs)


def test_a_step_that_is_not_kept_is_refused_with_those_that_are(engine, bus, client: Client):
    train(client, range(3))
    with pytest.raises(RequestError, match=r"step 7 .* is not kept. It is at step 3; kept steps: 0, 1, 2\."):
        answer(engine, RewindAdapter(client.model_id, 7))
    assert view_of(bus, client.model_id).step == 3


def test_a_loaded_checkpoint_begins_a_history_of_its_own(engine, client: Client):
    train(client, range(2))
    state = state_of(engine, client.model_id)
    train(client, range(2))
    client.send(ImportAdapter, state=state, name="loaded").result(60)
    with pytest.raises(RequestError, match="It is at step 2; kept steps: none"):
        answer(engine, RewindAdapter(client.model_id, 1))


def test_the_budget_bounds_what_is_kept_and_unloading_frees_it(base):
    bus = EventBus()
    engine = Engine(base, EngineSettings(train_tokens=256, kept_bytes=1 << 20), bus)
    engine.start()
    client, other = Client(engine, "a", rank=4), Client(engine, "b", rank=4)
    size = sum(array.nbytes for array in state_of(engine, "a").weights.values()) * 3
    fits = (1 << 20) // size
    assert fits >= 2
    train(client, range(fits + 2))
    view = view_of(bus, "a")
    assert len(view.kept_steps) == fits
    assert view.kept_steps[-1] == fits + 1
    assert view.host_bytes <= 1 << 20
    train(other, range(2))
    assert view_of(bus, "b").kept_steps == (0, 1)
    assert len(view_of(bus, "a").kept_steps) < fits, "the oldest made room"
    answer(engine, UnloadAdapter("a"))
    assert engine._kept.host_bytes == view_of(bus, "b").host_bytes
    engine.stop()


def test_without_a_budget_nothing_is_kept(base):
    bus = EventBus()
    engine = Engine(base, EngineSettings(train_tokens=256, kept_bytes=0), bus)
    engine.start()
    client = Client(engine, "a", rank=4)
    train(client, range(2))
    assert view_of(bus, "a").kept_steps == ()
    with pytest.raises(RequestError, match="kept steps: none"):
        answer(engine, RewindAdapter("a", 1))
    answer(engine, RewindAdapter("a", 2))  # where it is: only a gradient would go
    engine.stop()


# ------------------------------------------------------------------------------------------------- fork


@pytest.mark.parametrize("step", [None, 1, 2])
def test_a_fork_goes_its_own_way(engine, bus, client: Client, another: Client, step: int | None):
    train(client, range(2))
    client.forward_backward(datum(50, 8))  # its gradient stays its own
    before = state_of(engine, client.model_id)
    fork_id = f"{client.model_id} forked"
    answer(engine, ForkAdapter(fork_id, "fork", client.model_id, step))
    at = 2 if step is None else step
    view = view_of(bus, fork_id)
    assert (view.name, view.step, view.rank) == ("fork", at, 8)
    train(another, range(at))
    assert same(state_of(engine, fork_id), state_of(engine, another.model_id))
    fork = object.__new__(Client)
    fork.engine, fork.model_id, fork._seq = engine, fork_id, iter(range(1, 100))
    assert train(fork, range(5, 8)) == train(another, range(5, 8))
    assert same(state_of(engine, fork_id), state_of(engine, another.model_id))
    assert same(state_of(engine, client.model_id), before)
    answer(engine, RewindAdapter(fork_id, at))
    answer(engine, UnloadAdapter(client.model_id))
    assert state_of(engine, fork_id).step == at


def test_a_fork_needs_an_id_of_its_own_and_a_kept_step(engine, client: Client, another: Client):
    with pytest.raises(RequestError, match="exists already"):
        answer(engine, ForkAdapter(another.model_id, "x", client.model_id))
    with pytest.raises(RequestError, match="is not kept"):
        answer(engine, ForkAdapter("fork of nothing", "x", client.model_id, 4))
    with pytest.raises(RequestError, match="'nobody' is not there"):
        answer(engine, ForkAdapter("fork of nobody", "x", "nobody"))
