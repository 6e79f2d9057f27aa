"""Half of a pair takes no effect: steps behind passes that failed or were dropped, steps without a pass, marks."""

from __future__ import annotations

import time
from concurrent.futures import Future

import numpy as np
import pytest

from tests.engine.test_controls import ADAM, held, same, state_of, train, view_of
from tests.engine.tools import Client, answer, ask, datum
from txlab.engine.events import StepCompleted
from txlab.engine.passes import PassRun
from txlab.engine.pending_step import CONSTANT_LOGITS, INTERRUPTED, TOLD_SECONDS, ZERO_GRADIENT
from txlab.engine.requests import (
    AdamParams,
    Datum,
    ForkAdapter,
    ForwardBackward,
    ImportAdapter,
    NoteInterrupt,
    OptimStep,
    PauseAdapter,
    RequestError,
    ResumeAdapter,
    RewindAdapter,
    SkipSeq,
    StopAdapter,
)


@pytest.fixture(autouse=True)
def trained(client: Client, another: Client) -> None:
    """Both have momentum, so that a step without a gradient moves them."""
    for one in (client, another):
        train(one, range(2))


@pytest.fixture
def marks(bus):
    """The marks of all steps, newest last."""
    found: list[tuple[str, ...]] = []
    end = bus.listen(lambda event: found.append(event.marks) if isinstance(event, StepCompleted) else None)
    yield found
    end()


def bad(seed: int = 3) -> Datum:
    """Its loss is not finite, which only the device finds out."""
    return datum(4, seed, logprobs=-1e4, advantages=-1)


def skip(client: Client, refused: str, reason: str = "unknown loss_fn 'cros_entropy'") -> Future:
    """Request that the server sends in the place of a refused one."""
    return client.send(SkipSeq, refused=refused, reason=reason)


def refused(future: Future, because: str) -> None:
    with pytest.raises(RequestError, match="this optim_step was refused, and nothing has moved") as error:
        future.result(60)
    assert because in str(error.value)
    assert "send forward_backward again, then optim_step" in str(error.value)
    assert error.value.category == "user"


# ------------------------------------------------------------------------------ passes that failed


def test_a_step_behind_a_pass_that_failed_on_the_device_moves_nothing(engine, client: Client):
    before = state_of(engine, client.model_id)
    failed, step = client.begin(bad(), loss="importance_sampling"), client.send(OptimStep, adam=ADAM)
    with pytest.raises(RequestError, match="importance_sampling loss"):
        failed.result(60)
    refused(step, "its forward_backward (seq_id 5) failed: the importance_sampling loss of data[0] is inf")
    assert same(state_of(engine, client.model_id), before)


def test_a_step_behind_a_pass_that_was_refused_at_the_door_moves_nothing(engine, client: Client, another: Client):
    before = state_of(engine, client.model_id)
    skip(client, "forward_backward")
    refused(client.send(OptimStep, adam=ADAM), "its forward_backward (seq_id 5) failed: unknown loss_fn 'cros_entropy'")
    refused(client.send(OptimStep, adam=ADAM), "its forward_backward (seq_id 5) failed")
    assert same(state_of(engine, client.model_id), before)
    assert train(client, range(5, 7)) == train(another, range(5, 7)), "the next pair counts again"
    assert same(state_of(engine, client.model_id), state_of(engine, another.model_id))


def test_one_failed_chunk_refuses_the_step_and_drops_what_the_others_left(engine, client: Client, another: Client):
    for where in range(3):
        before = state_of(engine, client.model_id)
        for chunk in range(3):
            if chunk == where:
                skip(client, "forward_backward")
            else:
                client.begin(datum(20, chunk))
        refused(client.send(OptimStep, adam=ADAM), "unknown loss_fn")
        assert same(state_of(engine, client.model_id), before)
    assert train(client, range(5, 7)) == train(another, range(5, 7)), "nothing of the chunks is left"
    assert same(state_of(engine, client.model_id), state_of(engine, another.model_id))


def test_out_of_memory_of_one_of_two_refuses_the_step_of_that_one_alone(
    engine, client: Client, another: Client, monkeypatch
):
    real = PassRun.step

    def step(run):
        if any(t.request.model_id == client.model_id for t in run.tickets):
            raise MemoryError
        return real(run)

    monkeypatch.setattr(PassRun, "step", step)
    with held(engine):
        client.begin(datum(20))
        step_of_one = client.send(OptimStep, adam=ADAM)
        another.begin(datum(20))
        step_of_other = another.send(OptimStep, adam=ADAM)
    refused(step_of_one, "out of memory")
    assert step_of_other.result(60).metrics["grad_norm"] > 0


def test_a_forward_pass_that_fails_breaks_no_pair(client: Client):
    client.forward_backward(datum(20))
    with pytest.raises(RequestError, match="importance_sampling loss"):
        client.forward(bad(), loss="importance_sampling")
    client.send(SkipSeq).result(60)  # a forward pass that was refused at the door, or a checkpoint's name
    assert client.step(ADAM).metrics["grad_norm"] > 0


def test_pairs_that_follow_in_the_pipeline_are_whole(engine, client: Client, another: Client):
    with held(engine):
        futures = [skip(client, "forward_backward"), client.send(OptimStep, adam=ADAM)]
        for seed in range(2):
            futures += [client.begin(datum(30, seed)), client.send(OptimStep, adam=ADAM)]
    refused(futures[1], "unknown loss_fn")
    assert [future.result(60).metrics["step"] for future in (futures[3], futures[5])] == [3, 4]
    train(another, range(2))
    assert same(state_of(engine, client.model_id), state_of(engine, another.model_id))


def test_who_knows_of_the_failure_and_passes_again_may_step(engine, client: Client, another: Client):
    """A cell is mended and run again: no step was sent with the pass that failed."""
    skip(client, "forward_backward").result(60)
    told = time.monotonic() + TOLD_SECONDS
    while time.monotonic() <= told:  # the server tells no earlier
        time.sleep(0.01)
    assert train(client, range(5, 7)) == train(another, range(5, 7))
    assert same(state_of(engine, client.model_id), state_of(engine, another.model_id))


def test_a_batch_of_several_calls_is_whole_or_nothing(engine, client: Client):
    """One of them fails, its client is told and goes on: the step would be of a part of the batch."""
    client.forward_backward(datum(20, 1))
    skip(client, "forward_backward").result(60)
    time.sleep(TOLD_SECONDS)
    client.forward_backward(datum(20, 2))
    before = state_of(engine, client.model_id)
    refused(client.send(OptimStep, adam=ADAM), "unknown loss_fn")
    assert same(state_of(engine, client.model_id), before)


def test_where_nothing_can_move_who_knows_may_step(engine, bus, marks):
    """An adapter that was never stepped has no momentum."""
    fresh = Client(engine, "never stepped")
    skip(fresh, "forward_backward").result(60)
    refused(fresh.send(OptimStep, adam=ADAM), "unknown loss_fn")
    assert state_of(engine, "never stepped").step == 0
    other = Client(engine, "never stepped either")
    skip(other, "forward_backward").result(60)
    time.sleep(2 * TOLD_SECONDS)
    refused(other.send(OptimStep, adam=ADAM), "unknown loss_fn")  # it has weight decay
    third = Client(engine, "nor the third")
    before = state_of(engine, "nor the third")
    skip(third, "forward_backward").result(60)
    time.sleep(2 * TOLD_SECONDS)
    assert third.step(AdamParams(1e-3)).metrics == {"grad_norm": 0, "learning_rate": 1e-3, "step": 1}
    after = state_of(engine, "nor the third")
    assert all(np.array_equal(before.weights[name], after.weights[name]) for name in before.weights)
    assert marks[-1] == (ZERO_GRADIENT,)


def test_loaded_weights_begin_anew(engine, client: Client):
    state = state_of(engine, client.model_id)
    skip(client, "forward_backward")
    client.send(ImportAdapter, state=state, name="loaded").result(60)
    assert client.step(ADAM).metrics["step"] == 3


# ------------------------------------------------------------------------- gradients that were dropped


@pytest.mark.parametrize("end", ["rewind", "stop"])
def test_a_step_whose_gradient_the_lab_dropped_moves_nothing(engine, client: Client, another: Client, end: str):
    for one in (client, another):
        answer(engine, RewindAdapter(one.model_id, 1)) if end == "rewind" else None
    client.forward_backward(datum(40, 9))
    if end == "rewind":
        answer(engine, RewindAdapter(client.model_id, 1))
    else:
        answer(engine, StopAdapter(client.model_id))
        answer(engine, ResumeAdapter(client.model_id))
    before = state_of(engine, client.model_id)
    says = "the lab took the adapter back to step 1" if end == "rewind" else "the run was stopped from the lab"
    refused(client.send(OptimStep, adam=ADAM), says)
    assert same(state_of(engine, client.model_id), before)
    assert train(client, range(5, 7)) == train(another, range(5, 7)), "a new pair is whole at once"
    assert same(state_of(engine, client.model_id), state_of(engine, another.model_id))


def test_a_step_whose_gradient_a_load_dropped_moves_nothing(engine, client: Client):
    state = state_of(engine, client.model_id)
    client.begin(datum(40, 9))
    client.send(ImportAdapter, state=state, name="loaded")
    refused(client.send(OptimStep, adam=ADAM), "its gradient was dropped when other weights were loaded")
    assert same(state_of(engine, client.model_id), state)
    client.begin(datum(40, 9))
    client.send(ImportAdapter, state=state, name="loaded")
    client.begin(datum(40, 9))
    assert client.step(ADAM).metrics["grad_norm"] > 0, "a pair behind the load is whole"


def test_a_rewind_that_drops_nothing_breaks_nothing(engine, client: Client):
    answer(engine, PauseAdapter(client.model_id))
    waiting, step = client.begin(datum(30)), client.send(OptimStep, adam=ADAM)
    answer(engine, RewindAdapter(client.model_id, 1))
    answer(engine, ResumeAdapter(client.model_id))
    waiting.result(60)
    assert step.result(60).metrics["grad_norm"] > 0


def test_a_refused_step_takes_its_gradient_along(engine, client: Client, another: Client):
    """A wrong learning rate: the cell is run again, and the gradient must not count twice."""
    client.forward_backward(datum(40, 9))
    skip(client, "optim_step", "adam_params.learning_rate is negative").result(60)
    before = state_of(engine, client.model_id)
    refused(client.send(OptimStep, adam=ADAM), "(seq_id 6), which failed: adam_params.learning_rate is negative")
    assert same(state_of(engine, client.model_id), before)
    assert train(client, range(5, 7)) == train(another, range(5, 7))
    assert same(state_of(engine, client.model_id), state_of(engine, another.model_id))


def test_a_gradient_that_is_not_finite_is_dropped_and_changes_nothing(engine, client: Client, another: Client):
    huge = datum(30, 1, weights=1e36)  # the loss is finite, and the square of the gradient is not
    before = state_of(engine, client.model_id)
    client.forward_backward(huge)
    with pytest.raises(RequestError, match="is not finite; it was dropped and the adapter is unchanged"):
        client.step(ADAM)
    refused(client.send(OptimStep, adam=ADAM), "not finite")
    assert same(state_of(engine, client.model_id), before)
    assert train(client, range(5, 7)) == train(another, range(5, 7))


def test_a_fork_between_pass_and_step_leaves_both_whole(engine, client: Client):
    client.forward_backward(datum(30))
    answer(engine, ForkAdapter(f"fork of {client.model_id}", "fork", client.model_id))
    assert client.step(ADAM).metrics["grad_norm"] > 0


# ---------------------------------------------------------------------------------------------- marks


def test_a_step_without_a_pass_is_applied_and_marked(engine, bus, client: Client, marks, caplog):
    before = state_of(engine, client.model_id)
    assert client.step(ADAM).metrics == {"grad_norm": 0, "learning_rate": 0.01, "step": 3}
    assert not same(state_of(engine, client.model_id), before), "momentum and weight decay move it"
    assert marks[-1] == (ZERO_GRADIENT,)
    assert f"step 3 of adapter '{client.model_id}': {ZERO_GRADIENT}" in caplog.text
    assert view_of(bus, client.model_id).marks == ((3, ZERO_GRADIENT),)
    client.forward_backward(datum(20))
    client.step(ADAM)
    assert marks[-1] == ()
    assert view_of(bus, client.model_id).marks == ((3, ZERO_GRADIENT),)
    answer(engine, RewindAdapter(client.model_id, 2))
    assert view_of(bus, client.model_id).marks == ()


def test_constant_logits_are_marked(engine, base, client: Client, marks):
    """As a learning rate of 1e3 makes them: the loss is ln(vocabulary) and nothing has a gradient any more."""
    result = None
    for _ in range(4):
        result = client.forward_backward(datum(30))
        client.step(AdamParams(1e3))
    expected = 30 * np.log(base.config.vocab_size)
    assert result.metrics["loss:sum"] == pytest.approx(expected, rel=1e-4), "the premise"
    assert marks[-1] == (CONSTANT_LOGITS,)
    assert CONSTANT_LOGITS not in marks[0]


def test_what_was_sent_before_an_interrupt_is_told_and_marked(engine, client: Client, another: Client, marks):
    began = time.monotonic()
    sessions = frozenset({client.model_id})
    answer(engine, PauseAdapter(client.model_id))
    waiting = [client.begin(datum(20, seed)) for seed in range(2)]
    another.forward_backward(datum(20))
    (run,) = answer(engine, NoteInterrupt(sessions, began)).runs
    assert (run.model_id, run.under_way, run.accumulated, run.step_waits) == (client.model_id, 2, 0, False)
    answer(engine, ResumeAdapter(client.model_id))
    assert [future.result(60).metrics["tokens:sum"] for future in waiting] == [20, 20]
    (run,) = answer(engine, NoteInterrupt(sessions, began)).runs
    assert (run.under_way, run.accumulated) == (0, 2)
    assert answer(engine, NoteInterrupt(sessions, time.monotonic())).runs == (), "of an earlier cell"
    for one in (client, another):
        one.step(ADAM)
    assert marks[-2:] == [(INTERRUPTED,), ()]
    assert answer(engine, NoteInterrupt(sessions, began)).runs == ()


def test_a_pair_that_was_sent_whole_is_not_marked(engine, client: Client, marks):
    began = time.monotonic()
    answer(engine, PauseAdapter(client.model_id))
    client.begin(datum(20))
    step = client.send(OptimStep, adam=ADAM)
    (run,) = answer(engine, NoteInterrupt(frozenset({client.model_id}), began)).runs
    assert (run.under_way, run.step_waits) == (1, True)
    answer(engine, ResumeAdapter(client.model_id))
    step.result(60)
    assert marks[-1] == ()


# ------------------------------------------------------------------------------------------ stopped runs


def test_a_stopped_run_is_stopped_for_its_next_requests_too(engine, bus, client: Client, another: Client):
    result = answer(engine, StopAdapter(client.model_id))
    assert (result.requests, result.samples, result.passes) == (0, 0, 0)
    assert view_of(bus, client.model_id).state == "stopped"
    before = state_of(engine, client.model_id)
    for future in (client.begin(datum(20)), client.send(OptimStep, adam=ADAM)):
        with pytest.raises(RequestError, match=rf"stopped from the lab: .* lab\.resume\('{client.model_id}'\)"):
            future.result(60)
    assert same(state_of(engine, client.model_id), before)
    answer(engine, ResumeAdapter(client.model_id))
    assert view_of(bus, client.model_id).state == "idle"
    assert train(client, range(5, 7)) == train(another, range(5, 7))


def test_a_pair_of_which_the_pass_came_while_it_was_stopped(engine, client: Client):
    answer(engine, StopAdapter(client.model_id))
    with pytest.raises(RequestError, match="stopped from the lab"):
        client.forward_backward(datum(20))
    answer(engine, ResumeAdapter(client.model_id))
    refused(client.send(OptimStep, adam=ADAM), "the run was stopped from the lab")


def test_a_stop_tells_what_it_ended(engine, client: Client):
    client.forward_backward(datum(20))
    answer(engine, PauseAdapter(client.model_id))
    waiting = [client.begin(datum(20)), client.send(OptimStep, adam=ADAM)]
    ahead = ask(engine, ForwardBackward(client.model_id, 99, (datum(10),)))
    result = answer(engine, StopAdapter(client.model_id))
    assert (result.requests, result.samples, result.passes) == (3, 0, 1)
    for future in (*waiting, ahead):
        with pytest.raises(RequestError, match="stopped from the lab"):
            future.result(60)
