"""Engine: the one thread that owns the device. step(): schedule, run, complete."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future
from itertools import count

import jax
import numpy as np

from txlab.config import EngineSettings
from txlab.engine.bus import EventBus
from txlab.engine.compiles import use_compile_cache, watch_compiles
from txlab.engine.events import (
    AdapterCreated,
    BatchCompleted,
    PassCompleted,
    ProgramCompiled,
    SampleCompleted,
    SampleProgress,
    State,
    StateChanged,
    StepCompleted,
)
from txlab.engine.host_memory import keep_freed_memory, release_freed_memory, use_huge_pages
from txlab.engine.jobs import Job, Sequence
from txlab.engine.losses import Losses
from txlab.engine.passes import PassRun, total_weight
from txlab.engine.requests import (
    CancelSample,
    CreateAdapter,
    DropSnapshot,
    ExportAdapter,
    ForwardBackward,
    ForwardBackwardResult,
    FreezeAdapter,
    ImportAdapter,
    Limits,
    LoadSnapshot,
    OptimStep,
    OptimStepResult,
    Request,
    RequestError,
    Result,
    Sample,
    Sequenced,
    SnapshotGoneError,
    TakeSnapshot,
    UnloadAdapter,
)
from txlab.engine.sampler import Sampler
from txlab.engine.scheduler import Done, Scheduler, Ticket, model_of
from txlab.engine.shares import Shares
from txlab.engine.streams import streams_for
from txlab.engine.trainer import optim_step
from txlab.engine.warmup import WarmUp, rehearse
from txlab.lora.adapter import Adapter, to_state
from txlab.lora.bank import AdapterBank
from txlab.models.base import BaseModel
from txlab.models.mesh import replicated
from txlab.threads import daemon_thread

log = logging.getLogger(__name__)

OWN_METRICS = ("loss:sum", "tokens:sum")  # of every pass; what else its loss tells is drawn by name


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
        done(RequestError("the engine has stopped; start the server again", "server"))

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
            self._fail_all(RequestError("the engine has stopped; start the server again", "server"))

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
        if kind is None:
            return False
        with self._shares.spend(kind):
            work[kind]()
        return True

    def _accept(self, ticket: Ticket) -> None:
        request = ticket.request
        match request:
            case CreateAdapter():
                adapter = self._bank.create(request.model_id, request.lora)
                self._scheduler.open(request.model_id)
                self._publish_created(request.model_id, request.name, adapter)
            case UnloadAdapter():
                self._unload(request.model_id)
            case FreezeAdapter():
                self._freeze(request)
            case LoadSnapshot():
                self._bank.load_snapshot(request.snapshot_id, request.state)
            case DropSnapshot():
                self._bank.drop_snapshot(request.snapshot_id)
            case Sample():
                self._accept_sample(ticket, request)
                return
            case CancelSample():
                self._cancel_sample(request)
            case _:
                self._scheduler.add(ticket)
                self._show_state(request.model_id)
                return
        _tell(ticket, None)

    def _freeze(self, request: FreezeAdapter) -> None:
        if request.model_id not in self._bank:
            raise RequestError(f"model {request.model_id!r} is not there: it is still being made, or was unloaded")
        self._bank.take_snapshot(request.snapshot_id, request.model_id)

    def _unload(self, model_id: str) -> None:
        self._bank.drop(model_id)
        self._fail(self._scheduler.close(model_id), RequestError(f"model {model_id!r} was unloaded"))
        self._show_state(model_id, "unloaded")

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
            _tell(ticket, result)
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
            self._fail(tickets, error)

    def _cross(self, ticket: Ticket) -> None:
        """Carry out a barrier request."""
        try:
            result = self._barrier(ticket.request)
        except Exception as error:
            self._fail([ticket], error)
        else:
            _tell(ticket, result)
            self._show_state(model_of(ticket))

    def _barrier(self, request: Request) -> Result:
        match request:
            case OptimStep():
                return self._optim_step(request)
            case ExportAdapter():
                return to_state(self._bank[request.model_id], request.optimizer)
            case TakeSnapshot():
                self._bank.take_snapshot(request.snapshot_id, request.model_id)
            case ImportAdapter():
                adapter = self._bank.load(request.model_id, request.state)
                self._publish_created(request.model_id, request.name, adapter)
        return None

    def _optim_step(self, request: OptimStep) -> OptimStepResult:
        adapter = self._bank[request.model_id]
        result = optim_step(adapter, request.adam)
        self._bus.publish(
            StepCompleted(
                request.model_id,
                adapter.step,
                request.adam.learning_rate,
                result.metrics["grad_norm"],
                adapter.memory_bytes,
            )
        )
        return result

    # ------------------------------------------------------------------------- sampling

    def _accept_sample(self, ticket: Ticket, request: Sample) -> None:
        try:
            snapshot = None if request.snapshot_id is None else self._bank.snapshot(request.snapshot_id)
        except KeyError:
            raise SnapshotGoneError(
                f"the sampler {request.snapshot_id!r} is gone: its weights were dropped to make room for newer ones. "
                "Save weights that you want to keep with save_weights_for_sampler(name)."
            ) from None
        self._sampling[self._sampler.add(request, snapshot)] = ticket
        if snapshot is not None and snapshot.model_id is not None:
            self._show_state(snapshot.model_id)

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
        for s in result.sequences:
            self._bus.publish(SampleCompleted(job.model_id, prompt, s.tokens, s.logprobs, s.stop_reason, seconds))
        _tell(self._end_sample(job), result)

    def _cancel_sample(self, request: CancelSample) -> None:
        job = next((job for job in self._sampling if job.request is request.sample), None)
        if job is not None:
            self._sampler.cancel(job)
            _tell(self._end_sample(job), RequestError("cancelled: nobody waits for these samples any more"))

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
            _tell(ticket, as_request_error(error))
            if isinstance(ticket.request, Sequenced) and ticket.request.model_id in self._bank:
                self._show_state(ticket.request.model_id, "failed", str(error))

    def _fail_all(self, error: RequestError) -> None:
        """The end: nobody may wait for ever."""
        tickets = [*self._inbox, *self._sampling.values(), *(t for retry in self._retries for t in retry)]
        if self._run_of_passes is not None:
            tickets += self._run_of_passes.tickets
        tickets += self._scheduler.close_all()
        for ticket in tickets:
            _tell(ticket, error)

    def _publish_progress(self, sequence: Sequence, seen: int) -> None:
        job = sequence.job
        tokens, logprobs = np.array(sequence.tokens[seen:], np.int32), np.array(sequence.logprobs[seen:], np.float32)
        key, ended = (job.number, sequence.index), bool(sequence.stop_reason)
        self._bus.publish(SampleProgress(key, job.model_id, job.request.prompt, tokens, logprobs, ended))

    def _publish_created(self, model_id: str, name: str, adapter: Adapter) -> None:
        self._bus.publish(AdapterCreated(model_id, name, adapter.lora, adapter.memory_bytes, adapter.step))

    def _show_state(self, model_id: str, state: State | None = None, message: str = "") -> None:
        """Publish what an adapter does, if that changed; None: what its queues say."""
        if state is None:
            sampling = any(job.model_id == model_id for job in self._sampling)
            state = "queued" if self._scheduler.queued(model_id) else "sampling" if sampling else "idle"
        if self._states.get(model_id) != state:
            self._states[model_id] = state
            self._bus.publish(StateChanged(model_id, state, message))


def pass_completed(ticket: Ticket, result: ForwardBackwardResult, seconds: float) -> PassCompleted:
    """The event of a finished pass."""
    request = ticket.request
    assert isinstance(request, ForwardBackward)
    loss, tokens = result.metrics["loss:sum"], int(result.metrics["tokens:sum"])
    others = {name.partition(":")[0]: value for name, value in result.metrics.items() if name not in OWN_METRICS}
    return PassCompleted(request.model_id, loss, total_weight(request.data), tokens, seconds, request.backward, others)


def as_request_error(error: Exception) -> RequestError:
    """What the caller is told: ValueError is the user's, anything else the server's."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValueError):
        return RequestError(str(error))
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return RequestError("out of memory: send fewer or shorter sequences, or lower the rank", "server")
    return RequestError(f"{type(error).__name__}: {error}", "server")


def _tell(ticket: Ticket, result: Result | Exception) -> None:
    """Hand over a result. A receiver that fails is its own problem."""
    try:
        ticket.done(result)
    except Exception:
        log.exception("the receiver of a result failed")
