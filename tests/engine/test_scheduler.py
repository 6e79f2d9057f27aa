"""Order, barriers, batching across models."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.engine.tools import datum
from txlab.engine.requests import AdamParams, ExportAdapter, ForwardBackward, OptimStep, RequestError, SkipSeq
from txlab.engine.scheduler import Scheduler, Ticket

DATA = (datum(10),)


class Queue:
    """A scheduler fed with requests in order of arrival."""

    def __init__(self, *models: str, pass_tokens: int = 1000):
        self.scheduler = Scheduler(pass_tokens)
        self.arrivals = 0
        for model in models:
            self.scheduler.open(model)

    def add(self, request):
        self.arrivals += 1
        ticket = Ticket(request, lambda result: None, self.arrivals)
        self.scheduler.add(ticket)
        return ticket

    def passes(self):
        return [(t.request.model_id, t.request.seq_id) for t in self.scheduler.next_passes()]

    def barrier(self):
        ticket = self.scheduler.next_barrier()
        return ticket and (ticket.request.model_id, ticket.request.seq_id)


def fb(model, seq, loss="cross_entropy", backward=True, data=DATA):
    return ForwardBackward(model, seq, data, loss, {}, backward)


def step(model, seq):
    return OptimStep(model, seq, AdamParams())


def test_passes_run_up_to_the_next_barrier_and_the_barrier_after_them():
    q = Queue("a")
    tickets = [q.add(r) for r in (fb("a", 1), fb("a", 2), step("a", 3), fb("a", 4))]
    assert q.barrier() is None
    assert q.passes() == [("a", 1), ("a", 2)]
    assert q.passes() == []
    assert q.barrier() is None, "the passes have not ended"
    q.scheduler.finish(tickets[:2])
    assert q.barrier() == ("a", 3)
    assert q.passes() == [("a", 4)]


def test_a_gap_is_waited_for_and_delays_no_other_model():
    q = Queue("a", "b")
    q.add(fb("a", 2))
    q.add(fb("b", 1))
    assert q.passes() == [("b", 1)]
    q.add(fb("a", 1))
    assert sorted(q.passes()) == [("a", 1), ("a", 2)]


def test_a_skipped_seq_id_closes_the_gap():
    q = Queue("a")
    q.add(fb("a", 2))
    q.add(SkipSeq("a", 1))
    assert q.barrier() == ("a", 1)
    assert q.passes() == [("a", 2)]


def test_passes_of_all_models_and_losses_run_together_but_kinds_do_not_mix():
    q = Queue("a", "b", "c")
    for request in (fb("a", 1), fb("b", 1, "ppo"), fb("c", 1), fb("a", 2, backward=False), fb("b", 2)):
        q.add(request)
    assert q.passes() == [("a", 1), ("b", 1), ("c", 1), ("b", 2)]
    assert q.passes() == [("a", 2)]


def test_a_large_pass_does_not_take_others_along_beyond_the_limit():
    q = Queue("a", "b", pass_tokens=25)
    q.add(fb("a", 1, data=DATA * 2))
    q.add(fb("a", 2, data=DATA * 2))
    q.add(fb("b", 1, data=(datum(5),)))
    assert q.passes() == [("a", 1), ("b", 1)]
    assert q.passes() == [("a", 2)]


def test_the_longest_waiting_barrier_comes_first():
    q = Queue("a", "b")
    q.add(ExportAdapter("b", 1, True))
    q.add(step("a", 1))
    assert [q.barrier(), q.barrier(), q.barrier()] == [("b", 1), ("a", 1), None]


def test_bad_tickets_are_refused():
    q = Queue("a")
    q.add(fb("a", 1))
    with pytest.raises(RequestError, match="seq_id 1 of 'a' was used before"):
        q.add(fb("a", 1))
    with pytest.raises(RequestError, match="no model 'x'"):
        q.add(fb("x", 1))


def test_closing_returns_what_was_queued():
    q = Queue("a")
    tickets = [q.add(fb("a", 1)), q.add(fb("a", 3))]
    assert q.scheduler.close("a") == tickets
    with pytest.raises(RequestError, match="no model"):
        q.add(fb("a", 2))


def test_nothing_of_a_paused_model_is_handed_out():
    q = Queue("a", "b")
    first = q.add(fb("a", 1))
    assert q.passes() == [("a", 1)]
    q.scheduler.pause("a")
    for request in (fb("a", 2), step("a", 3), fb("b", 1)):
        q.add(request)
    assert q.passes() == [("b", 1)]
    q.scheduler.finish([first])
    assert (q.passes(), q.barrier(), q.scheduler.ready) == ([], None, False)
    assert (q.scheduler.paused("a"), q.scheduler.paused("b"), q.scheduler.queued("a")) == (True, False, 2)
    q.scheduler.resume("a")
    assert q.scheduler.ready
    assert q.passes() == [("a", 2)]


def test_a_paused_barrier_waits_too():
    q = Queue("a")
    q.add(step("a", 1))
    q.scheduler.pause("a")
    assert q.barrier() is None
    q.scheduler.resume("a")
    assert q.barrier() == ("a", 1)


def test_what_was_stopped_is_not_waited_for():
    q = Queue("a")
    q.scheduler.pause("a")
    tickets = [q.add(fb("a", 1)), q.add(fb("a", 3)), q.add(step("a", 4))]
    assert q.scheduler.stop("a") == tickets
    assert not q.scheduler.paused("a")
    assert q.scheduler.queued("a") == 0
    with pytest.raises(RequestError, match="seq_id 2 of 'a' was used before, or belongs to a run that was stopped"):
        q.add(fb("a", 2))
    q.add(fb("a", 5))
    assert q.passes() == [("a", 5)]
    assert q.scheduler.stop("a") == [], "nothing waits"
    q.add(fb("a", 6))
    assert q.passes() == [("a", 6)]


@pytest.mark.parametrize("control", ["pause", "resume", "stop"])
def test_models_that_are_not_there_cannot_be_steered(control):
    with pytest.raises(RequestError, match="no model 'x'"):
        getattr(Queue("a").scheduler, control)("x")


@pytest.mark.parametrize("module", ["scheduler", "requests", "losses", "events", "packing", "validation"])
def test_modules_of_order_import_without_jax(module):
    code = f"import sys, txlab.engine.{module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
