"""Engine: the one thread that owns the device. step(): schedule, run, complete."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future
from itertools import count

import jax
import numpy as np

from txlab.config import EngineSettings
from txlab.engine.adapters import Adapters
from txlab.engine.bus import EventBus
from txlab.engine.compiles import use_compile_cache, watch_compiles
from txlab.engine.events import (
    BatchCompleted,
    ProgramCompiled,
    SampleCompleted,
    SampleProgress,
    State,
    StateChanged,
)
from txlab.engine.host_memory import keep_freed_memory, release_freed_memory, use_huge_pages
from txlab.engine.jobs import Job, Sequence
from txlab.engine.kept_steps import KeptSteps
from txlab.engine.load import LoadMeter
from txlab.engine.losses import Losses
from txlab.engine.passes import PassRun, pass_completed
from txlab.engine.pending_step import PendingStep, uniform
from txlab.engine.requests import (
    CancelSample,
    CreateAdapter,
    ForkAdapter,
    ForwardBackward,
    ForwardBackwardResult,
    ImportAdapter,
    InterruptedRuns,
    Limits,
    NoteInterrupt,
    OptimStep,
    PauseAdapter,
    Request,
    RequestError,
    Result,
    ResumeAdapter,
    RewindAdapter,
    Sample,
    Sequenced,
    SkipSeq,
    SnapshotGoneError,
    StopAdapter,
    StoppedRun,
    UnloadAdapter,
    UnsteppedPasses,
    as_request_error,
)
from txlab.engine.sampler import Sampler
from txlab.engine.scheduler import Done, Scheduler, Ticket, is_backward, model_of
from txlab.engine.shares import Shares
from txlab.engine.streams import streams_for
from txlab.engine.warmup import WarmUp, rehearse
from txlab.lora.bank import AdapterBank
from txlab.models.base import BaseModel
from txlab.models.mesh import replicated
from txlab.threads import daemon_thread

STOPPED = "the engine has stopped: when a lab runs again, make a new ServiceClient and go on from a checkpoint"

log = logging.getLogger(__name__)


class Engine:
    """Trains and samples many adapters of one base model.

    ``submit`` may be called from any thread. Everything else happens on the engine's own thread, or on those of its
    streams while it waits for them, between ``start`` and ``stop``: training goes a micro-batch for each stream at a
    time and sampling a few tokens at a time, and their shares say which comes next.
    """

    def __init__(self, base: BaseModel, settings: EngineSettings, bus: EventBus):
        self.base = base
        self.limits = Limits(base.config.vocab_size, base.config.max_context, settings.max_rank)
        self.losses = Losses()
        self._settings = settings
        self._bus = bus
        self._bank = AdapterBank(base.config, replicated(base.mesh), settings.snapshot_bytes)
        self._kept = KeptSteps(settings.kept_bytes, copy=not self._on_host)
        self._adapters = Adapters(self._bank, self._kept, bus)
        self._pending_steps: defaultdict[str, PendingStep] = defaultdict(PendingStep)
        self._streams = streams_for(base, settings)
        self._sampler = Sampler(
            base,
            settings.sample_rows,
            settings.decode_steps,
            settings.cache_bytes,
            settings.prefix_bytes,
            self._publish_progress,
        )
        self._scheduler = Scheduler(pass_tokens=8 * self._streams.count * self._streams.tokens)
        self._load = LoadMeter(base, self._bank, self._scheduler, self._sampler, self._kept, settings, bus.publish)
        self._shares = Shares({"sampling": settings.sample_share, "training": 1 - settings.sample_share})
        self._run_of_passes: PassRun | None = None
        self._retries: deque[list[Ticket]] = deque()
        self._sampling: dict[Job, Ticket] = {}
        self._states: dict[str, State] = {}
        self._inbox: deque[Ticket] = deque()
        self._arrivals = count()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._idle = threading.Event()
        self._warm_up: WarmUp | None = None

    # ----------------------------------------------------------------------- any thread

    def start(self) -> None:
        """Start the engine thread."""
        use_compile_cache(self._settings.compile_cache)
        if self._on_host:
            keep_freed_memory()
        self._thread = daemon_thread(self._run, "txlab-engine")
        self._thread.start()

    @property
    def _on_host(self) -> bool:
        return self.base.mesh.devices.flat[0].platform == "cpu"

    @property
    def micro_batches(self) -> tuple[int, int]:
        """How many run side by side, and positions of each."""
        return self._streams.count, self._streams.tokens

    @property
    def busy_seconds(self) -> float:
        """How long the engine's thread has worked, rather than waited for requests."""
        return self._shares.busy_seconds

    def warm_up(self) -> None:
        """Compile what short sequences will need, while nothing else is to be done."""
        rehearsal = rehearse(self.base, self._streams.tokens)
        self._warm_up = WarmUp(rehearsal, self._idle, lambda: log.info("the programs of training are compiled"))

    def stop(self) -> None:
        """End after the work in hand, fail what is queued, free the device memory."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        if self._warm_up is not None:
            self._warm_up.stop()
        self._streams.close()
        release_freed_memory()

    def submit(self, request: Request, done: Done) -> None:
        """Queue ``request``. ``done`` gets its result, or the exception, on the engine thread; it must not block."""
        with self._wake:
            if not self._stopping:
                self._inbox.append(Ticket(request, done, next(self._arrivals)))
                self._wake.notify()
                return
        done(RequestError(STOPPED, "server"))

    def ask(self, request: Request) -> Future[Result]:
        """Queue ``request``; the future of its result."""
        future: Future[Result] = Future()

        def done(result: Result | Exception) -> None:
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.submit(request, done)
        return future

    # -------------------------------------------------------------------- engine thread

    def _run(self) -> None:
        unwatch = watch_compiles(lambda program, seconds: self._bus.publish(ProgramCompiled(program, seconds)))
        if self._on_host:
            use_huge_pages([*jax.tree.leaves(self.base.decoder.weights), self.base.decoder.head])
        try:
            while self._receive(wait=not self.step()):
                pass
        finally:
            unwatch()
            self._fail_all(RequestError(STOPPED, "server"))

    def _receive(self, wait: bool) -> bool:
        """Take in what has arrived; ``wait`` for something where nothing is left to do. False to end."""
        with self._wake:
            if wait and not (self._inbox or self._stopping):
                self._idle.set()
                self._wake.wait_for(lambda: self._inbox or self._stopping)
                self._idle.clear()
            arrived, self._inbox = self._inbox, deque()
        for ticket in arrived:
            try:
                self._accept(ticket)
            except Exception as error:
                self._fail([ticket], error)
        return not self._stopping

    def step(self) -> bool:
        """One piece of training or of sampling, as their shares say. False where there was nothing to do."""
        work = {"sampling": self._sample, "training": self._train}
        kind = self._shares.next({"sampling": self._sampler.busy, "training": self._may_train()})
        self._load.tell(resting=kind is None)
        if kind is None:
            return False
        with self._shares.spend(kind):
            work[kind]()
        return True

    def _accept(self, ticket: Ticket) -> None:
        """Queue a request, or carry it out at once, whatever is queued."""
        request = ticket.request
        if isinstance(request, Sequenced):
            self._scheduler.add(ticket)
            if self._scheduler.stopped(request.model_id):
                self._refuse(request.model_id, self._scheduler.stop(request.model_id))
            self._show_state(request.model_id)
        elif isinstance(request, Sample):
            self._accept_sample(ticket, request)
        else:
            ticket.tell(self._control(request))

    def _control(self, request: Request) -> Result:
        match request:
            case CancelSample():
                self._cancel_sample(request)
            case PauseAdapter():
                self._scheduler.pause(request.model_id)
                self._show_state(request.model_id)
            case ResumeAdapter():
                self._scheduler.resume(request.model_id)
                self._show_state(request.model_id)
            case StopAdapter():
                return self._stop_adapter(request.model_id)
            case NoteInterrupt():
                return self._note_interrupt(request)
            case _:
                return self._change(request)
        return None

    def _change(self, request: Request) -> Result:
        result = self._adapters.carry_out(request)
        match request:
            case CreateAdapter() | ForkAdapter():
                self._scheduler.open(request.model_id)
            case RewindAdapter():
                self._begin_again(request.model_id)
                if self._pending_steps[request.model_id].passes:
                    reason = f"its gradient was dropped when the lab took the adapter back to step {request.step}"
                    self._pending_steps[request.model_id].dropped(time.monotonic(), reason)
            case UnloadAdapter():
                self._pending_steps.pop(request.model_id, None)
                tickets = self._take_back(request.model_id) + self._scheduler.close(request.model_id)
                self._fail(tickets, RequestError(f"model {request.model_id!r} was unloaded"))
                self._bus.publish(StateChanged(request.model_id, "unloaded"))
                self._states.pop(request.model_id, None)
        return result

    def _stop_adapter(self, model_id: str) -> StoppedRun:
        """End whatever runs or waits for an adapter, its gradient too, so that nothing is half applied."""
        self._adapters.drop_gradient(model_id)
        queued = self._scheduler.stop(model_id)
        self._begin_again(model_id)
        running = self._take_back(model_id)
        self._scheduler.finish(running)
        jobs = [job for job in self._sampling if job.model_id == model_id]
        for job in jobs:
            self._sampler.cancel(job)
            self._end_sample(job).tell(self._stopped(model_id))
        passes = self._pending_steps[model_id].passes
        self._refuse(model_id, running + queued)
        self._show_state(model_id)
        return StoppedRun(len(running + queued), len(jobs), passes, self._adapters.address(model_id))

    def _refuse(self, model_id: str, tickets: Items[Ticket]) -> None:
        """Fail requests of a stopped adapter. Where a pass is among them, or was dropped, its step may not run."""
        pending = self._pending_steps[model_id]
        if pending.passes or any(is_backward(ticket.request) for ticket in tickets):
            pending.dropped(time.monotonic(), "its gradient was dropped when the run was stopped from the lab")
        for ticket in tickets:
            ticket.tell(self._stopped(model_id))

    def _stopped(self, model_id: str) -> RequestError:
        return RequestError(
            f"stopped from the lab: the run of adapter {self._adapters.name(model_id)!r} was ended by its user. What "
            f"its client sends is refused until lab.resume({self._adapters.address(model_id)!r}); a new training "
            "client, with an adapter of its own, is free to train"
        )

    def _note_interrupt(self, request: NoteInterrupt) -> InterruptedRuns:
        """Mark the next steps of an interrupted program's adapters, and tell what of it goes on."""
        runs = []
        for model_id in self._adapters:
            if model_id.partition(":")[0] not in request.sessions:
                continue
            pending, tickets = self._pending_steps[model_id], self._under_way(model_id)
            passes = [t for t in tickets if is_backward(t.request) and t.sent >= request.since]
            accumulated = pending.passes if pending.newest >= request.since else 0
            if passes or accumulated:
                step_waits = any(isinstance(ticket.request, OptimStep) for ticket in tickets)
                if not step_waits:
                    pending.interrupt()
                name = self._adapters.address(model_id)
                runs.append(UnsteppedPasses(model_id, name, len(passes), accumulated, step_waits))
        return InterruptedRuns(tuple(runs))

    def _under_way(self, model_id: str) -> list[Ticket]:
        """An adapter's sequenced requests that run or wait."""
        run = self._run_of_passes
        begun = [*(run.tickets if run is not None else ()), *(ticket for retry in self._retries for ticket in retry)]
        return [ticket for ticket in begun if model_of(ticket) == model_id] + self._scheduler.waiting(model_id)

    # ------------------------------------------------------------------------- training

    def _may_train(self) -> bool:
        return self._run_of_passes is not None or bool(self._retries) or self._scheduler.ready

    def _train(self) -> None:
        """The next barrier, or the next micro-batches."""
        if self._run_of_passes is None:
            if (barrier := self._scheduler.next_barrier()) is not None:
                self._cross(barrier)
                return
            tickets = self._retries.popleft() if self._retries else self._scheduler.next_passes()
            self._attempt(tickets, lambda: self._begin(tickets))
        if (run := self._run_of_passes) is not None:
            self._attempt(run.tickets, lambda: self._advance(run))

    def _begin(self, tickets: Items[Ticket]) -> None:
        for ticket in tickets:
            self._show_state(model_of(ticket), "training")
        self._run_of_passes = PassRun(tickets, self._bank, self._streams, self.losses)

    def _begin_again(self, model_id: str) -> None:
        """Let the passes that run together with one of a model start anew: nothing of them has taken effect yet."""
        run = self._run_of_passes
        if run is not None and any(model_of(ticket) == model_id for ticket in run.tickets):
            self._run_of_passes = None
            self._retries.appendleft(list(run.tickets))

    def _take_back(self, model_id: str) -> list[Ticket]:
        """A model's passes that were to start anew, which now do not."""
        taken = [ticket for tickets in self._retries for ticket in tickets if model_of(ticket) == model_id]
        left = ([ticket for ticket in tickets if ticket not in taken] for tickets in self._retries)
        self._retries = deque(tickets for tickets in left if tickets)
        return taken

    def _advance(self, run: PassRun) -> None:
        if batches := run.step():
            for batch in batches:
                self._bus.publish(BatchCompleted(*batch.used))
            return
        results = run.results()
        run.commit()
        self._run_of_passes = None
        self._scheduler.finish(run.tickets)
        for ticket, result in zip(run.tickets, results, strict=True):
            self._bus.publish(pass_completed(ticket, result, run.seconds))
            self._note_pass(ticket, result)
            ticket.tell(result)
            self._show_state(model_of(ticket))

    def _attempt(self, tickets: Items[Ticket], work: Callable[[], None]) -> None:
        """Do ``work`` for passes that run together; where it fails, try them one by one, so that none fails another."""
        try:
            work()
        except Exception as error:
            self._run_of_passes = None
            if len(tickets) > 1:
                self._retries.extend([ticket] for ticket in tickets)
                return
            self._scheduler.finish(tickets)
            self._note_failed_pass(tickets[0], time.monotonic(), str(as_request_error(error)))
            self._fail(tickets, error)

    def _note_pass(self, ticket: Ticket, result: ForwardBackwardResult) -> None:
        if is_backward(ticket.request) and model_of(ticket) in self._adapters:  # it may be unloaded meanwhile
            constant = uniform(result.logprobs, self.limits.vocab_size)
            self._pending_steps[model_of(ticket)].passed(ticket.sent, constant)

    def _note_failed_pass(self, ticket: Ticket, at: float, message: str) -> None:
        request = ticket.request
        assert isinstance(request, ForwardBackward | SkipSeq)
        if (isinstance(request, SkipSeq) or request.backward) and request.model_id in self._adapters:
            reason = f"its forward_backward (seq_id {request.seq_id}) failed: {message}"
            self._pending_steps[request.model_id].failed(ticket.sent, at, reason)

    def _cross(self, ticket: Ticket) -> None:
        """Carry out a barrier request."""
        try:
            result = self._carry_out(ticket)
        except Exception as error:
            self._fail([ticket], error)
        else:
            ticket.tell(result)
            self._show_state(model_of(ticket))

    def _carry_out(self, ticket: Ticket) -> Result:
        match request := ticket.request:
            case OptimStep():
                return self._optim_step(ticket, request)
            case SkipSeq(refused="forward_backward"):
                self._note_failed_pass(ticket, ticket.sent, request.reason)
            case SkipSeq(refused="optim_step"):
                self._drop_half(request, request.reason)
            case ImportAdapter():
                self._adapters.carry_out(request)
                self._begin_step_anew(request.model_id)
            case _:
                return self._adapters.carry_out(request)
        return None

    def _begin_step_anew(self, model_id: str) -> None:
        """Other weights were loaded: what was sent before counts no more, but a step must not run for a lost gradient.

        Whatever comes behind the load is another attempt.
        """
        passes = self._pending_steps.pop(model_id, PendingStep()).passes
        if passes:
            self._pending_steps[model_id].dropped(-math.inf, "its gradient was dropped when other weights were loaded")

    def _optim_step(self, ticket: Ticket, request: OptimStep) -> Result:
        """Apply what was accumulated; where that is a part of what was sent for the step, refuse it and drop that."""
        pending = self._pending_steps[request.model_id]
        reason = pending.refusal(ticket.sent, self._adapters.is_idle(request))
        if reason is not None:
            self._drop_half(request, reason)
            raise RequestError(
                f"this optim_step was refused, and nothing has moved: {reason}. Whatever was accumulated for it was "
                "dropped: send forward_backward again, then optim_step"
            )
        try:
            return self._adapters.optim_step(request, pending.stepped)
        except Exception as error:
            self._drop_half(request, str(as_request_error(error)))
            raise

    def _drop_half(self, request: OptimStep | SkipSeq, reason: str) -> None:
        """Forget what was accumulated for a step that does not run: the next one must not add to it."""
        self._adapters.drop_gradient(request.model_id)
        self._pending_steps[request.model_id].refused(
            f"its gradient was dropped with the optim_step before (seq_id {request.seq_id}), which failed: {reason}"
        )

    # ------------------------------------------------------------------------- sampling

    def _accept_sample(self, ticket: Ticket, request: Sample) -> None:
        try:
            snapshot = None if request.snapshot_id is None else self._bank.snapshot(request.snapshot_id)
        except KeyError:
            raise SnapshotGoneError(
                f"the sampler {request.snapshot_id!r} is gone: its weights were dropped to make room for newer ones. "
                "Save weights that you want to keep with save_weights_for_sampler(name)."
            ) from None
        model_id = None if snapshot is None else snapshot.model_id
        if request.of_run and model_id is not None and self._scheduler.stopped(model_id):
            raise self._stopped(model_id)
        self._sampling[self._sampler.add(request, snapshot)] = ticket
        if model_id is not None:
            self._show_state(model_id)

    def _sample(self) -> None:
        """Some pieces of prompts, and some decode steps."""
        try:
            ended = self._sampler.step()
        except Exception as error:
            for job in self._sampler.clear():
                self._fail([self._end_sample(job)], error)
            return
        for job in ended:
            self._complete_sample(job)

    def _complete_sample(self, job: Job) -> None:
        result = job.result()
        prompt, seconds = job.request.prompt, job.seconds
        for s in result.sequences if job.request.announced else ():
            self._bus.publish(SampleCompleted(job.model_id, prompt, s.tokens, s.logprobs, s.stop_reason, seconds))
        self._end_sample(job).tell(result)

    def _cancel_sample(self, request: CancelSample) -> None:
        job = next((job for job in self._sampling if job.request is request.sample), None)
        if job is not None:
            self._sampler.cancel(job)
            self._end_sample(job).tell(RequestError("cancelled: nobody waits for these samples any more"))

    def _end_sample(self, job: Job) -> Ticket:
        """Forget a job that has ended. Returns whose it was."""
        ticket = self._sampling.pop(job)
        for sequence in job.sequences:
            if not sequence.stop_reason:
                sequence.stop_reason = "cancelled"
                self._publish_progress(sequence, len(sequence.tokens))
        if job.model_id is not None:
            self._show_state(job.model_id)
        return ticket

    # ------------------------------------------------------------------ failures, states

    def _fail(self, tickets: Items[Ticket], error: Exception) -> None:
        if not isinstance(error, RequestError):
            log.error("a request failed", exc_info=error)
        for ticket in tickets:
            ticket.tell(as_request_error(error))
            if isinstance(ticket.request, Sequenced) and ticket.request.model_id in self._adapters:
                self._show_state(ticket.request.model_id, "failed", str(error))

    def _fail_all(self, error: RequestError) -> None:
        """The end: nobody may wait for ever."""
        tickets = [*self._inbox, *self._sampling.values(), *(t for retry in self._retries for t in retry)]
        if self._run_of_passes is not None:
            tickets += self._run_of_passes.tickets
        tickets += self._scheduler.close_all()
        for ticket in tickets:
            ticket.tell(error)

    def _publish_progress(self, sequence: Sequence, seen: int) -> None:
        job = sequence.job
        if not job.request.announced:
            return
        tokens, logprobs = np.array(sequence.tokens[seen:], np.int32), np.array(sequence.logprobs[seen:], np.float32)
        key, ended = (job.number, sequence.index), bool(sequence.stop_reason)
        self._bus.publish(SampleProgress(key, job.model_id, job.request.prompt, tokens, logprobs, ended))

    def _show_state(self, model_id: str, state: State | None = None, message: str = "") -> None:
        """Publish what an adapter does, if that changed; None: what its queues say.

        One that is paused or stopped is so until it is resumed.
        """
        if self._scheduler.stopped(model_id):
            state, message = "stopped", ""
        elif self._scheduler.paused(model_id):
            state, message = "paused", ""
        elif state is None:
            sampling = any(job.model_id == model_id for job in self._sampling)
            state = "queued" if self._scheduler.queued(model_id) else "sampling" if sampling else "idle"
        if model_id in self._adapters and self._states.get(model_id) != state:  # samples may outlive their adapter
            self._states[model_id] = state
            self._bus.publish(StateChanged(model_id, state, message))
