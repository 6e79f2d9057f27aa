"""Which request may run now. Pure Python: knows order and fairness, not arrays.

The requests of one model take effect in seq_id order. Passes commute with one another, so all that lie before a
model's next barrier (optim_step, save, load, snapshot) may run together, and together with those of other models.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from txlab.engine.requests import ForwardBackward, ImportAdapter, Request, RequestError, Result, Sequenced

log = logging.getLogger(__name__)

Done = Callable[[Result | Exception], None]


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A request and whom to tell. ``done`` is called once, on the engine thread."""

    request: Request
    done: Done
    arrival: int
    sent: float = field(default_factory=time.monotonic)

    @property
    def backward(self) -> bool:
        """Whether a pass computes gradients. Passes of one kind may share a device batch."""
        assert isinstance(self.request, ForwardBackward)
        return self.request.backward

    @property
    def tokens(self) -> int:
        """Tokens of a pass."""
        assert isinstance(self.request, ForwardBackward)
        return sum(len(datum.tokens) for datum in self.request.data)

    def tell(self, result: Result | Exception) -> None:
        """Hand over a result. A receiver that fails is its own problem."""
        try:
            self.done(result)
        except Exception:
            log.exception("the receiver of a result failed")


@dataclass(slots=True)
class _Model:
    next_seq: int
    waiting: dict[int, Ticket] = field(default_factory=dict)  # seq_id -> arrived, perhaps out of order
    ready: deque[Ticket] = field(default_factory=deque)  # in order, without gaps
    running: int = 0  # passes handed out and not finished
    paused: bool = False
    stopped: bool = False

    def advance(self) -> None:
        while (ticket := self.waiting.pop(self.next_seq, None)) is not None:
            self.ready.append(ticket)
            self.next_seq += 1

    def empty(self) -> list[Ticket]:
        """Forget what is queued, and what is still to arrive before the last of it."""
        queued = [*self.ready, *self.waiting.values()]
        self.next_seq = max(self.waiting, default=self.next_seq - 1) + 1
        self.ready.clear()
        self.waiting.clear()
        return queued

    def passes(self) -> list[Ticket]:
        """Ready passes before the next barrier."""
        found: list[Ticket] = []
        if self.paused:
            return found
        for ticket in self.ready:
            if not isinstance(ticket.request, ForwardBackward):
                break
            found.append(ticket)
        return found

    def barrier(self) -> Ticket | None:
        """The next barrier, if nothing before it is left or running."""
        if self.paused or self.running or not self.ready or isinstance(self.ready[0].request, ForwardBackward):
            return None
        return self.ready[0]


class Scheduler:
    """Sequenced requests by model. The engine thread alone calls it."""

    def __init__(self, pass_tokens: int):
        self._pass_tokens = pass_tokens
        self._models: dict[str, _Model] = {}

    def open(self, model_id: str) -> None:
        """Begin to accept requests of a model; its first seq_id is 1."""
        self._models.setdefault(model_id, _Model(next_seq=1))

    def close(self, model_id: str) -> list[Ticket]:
        """Forget a model. Returns what was queued for it."""
        queued = self.waiting(model_id)
        self._models.pop(model_id, None)
        return queued

    def close_all(self) -> list[Ticket]:
        """Forget all models. Returns what was queued."""
        return [ticket for model_id in list(self._models) for ticket in self.close(model_id)]

    def add(self, ticket: Ticket) -> None:
        """Queue a sequenced request. RequestError where its model is unknown or its seq_id was used."""
        request = ticket.request
        assert isinstance(request, Sequenced)
        if request.model_id not in self._models and isinstance(request, ImportAdapter) and request.seq_id == 0:
            self._models[request.model_id] = _Model(next_seq=0)
        model = self._model(request.model_id)
        if request.seq_id < model.next_seq or request.seq_id in model.waiting:
            raise RequestError(
                f"seq_id {request.seq_id} of {request.model_id!r} was used before, or belongs to a run that was stopped"
            )
        model.waiting[request.seq_id] = ticket
        model.advance()

    def pause(self, model_id: str) -> None:
        """Hand out nothing of a model until ``resume``. RequestError where it is unknown."""
        self._model(model_id).paused = True

    def resume(self, model_id: str) -> None:
        """Go on with a model that is paused or stopped; else no effect. RequestError where it is unknown."""
        model = self._model(model_id)
        model.paused = model.stopped = False

    def paused(self, model_id: str) -> bool:
        """Whether a model is paused."""
        model = self._models.get(model_id)
        return model is not None and model.paused

    def stop(self, model_id: str) -> list[Ticket]:
        """Forget what is queued for a model, and return it; until ``resume`` it is stopped, and paused no more.

        The seq_ids are used up: also those that others of the queue waited for, which are refused when they come.
        RequestError where the model is unknown.
        """
        model = self._model(model_id)
        model.paused, model.stopped = False, True
        return model.empty()

    def stopped(self, model_id: str) -> bool:
        """Whether a model is stopped."""
        model = self._models.get(model_id)
        return model is not None and model.stopped

    def waiting(self, model_id: str) -> list[Ticket]:
        """Queued requests of a model."""
        model = self._models.get(model_id)
        return [] if model is None else [*model.ready, *model.waiting.values()]

    @property
    def ready(self) -> bool:
        """Whether a pass or a barrier may run now. A barrier behind a running pass may not."""
        return any(model.passes() or model.barrier() for model in self._models.values())

    def next_barrier(self) -> Ticket | None:
        """The longest waiting request that must run alone, if one may run now."""
        found = [(ticket.arrival, model) for model in self._models.values() if (ticket := model.barrier())]
        return min(found, key=lambda pair: pair[0])[1].ready.popleft() if found else None

    def next_passes(self) -> list[Ticket]:
        """Passes of one kind, all backward or none, that may run together now, of all models and losses.

        The longest waiting pass chooses the kind; others join in order of arrival up to a limit of tokens, so that
        a large request delays a small one of another model by a bounded time.
        """
        ready = sorted((t for model in self._models.values() for t in model.passes()), key=lambda t: t.arrival)
        if not ready:
            return []
        chosen: list[Ticket] = []
        tokens = 0
        for ticket in (t for t in ready if t.backward == ready[0].backward):
            if chosen and tokens + ticket.tokens > self._pass_tokens:
                continue
            chosen.append(ticket)
            tokens += ticket.tokens
        self._start(chosen)
        return chosen

    def finish(self, tickets: Sequence[Ticket]) -> None:
        """Passes handed out by ``next_passes`` have ended, well or not."""
        for ticket in tickets:
            model = self._models.get(model_of(ticket))
            if model is not None:
                model.running -= 1

    def queued(self, model_id: str) -> int:
        """Requests of a model that wait."""
        return len(self.waiting(model_id))

    @property
    def total_queued(self) -> int:
        """Requests of all models that wait."""
        return sum(len(model.ready) + len(model.waiting) for model in self._models.values())

    def _model(self, model_id: str) -> _Model:
        model = self._models.get(model_id)
        if model is None:
            raise RequestError(f"there is no model {model_id!r}: it was never created, or was unloaded")
        return model

    def _start(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            model = self._models[model_of(ticket)]
            model.ready.remove(ticket)
            model.running += 1


def model_of(ticket: Ticket) -> str:
    """The model of a sequenced request."""
    assert isinstance(ticket.request, Sequenced)
    return ticket.request.model_id


def is_backward(request: Request) -> bool:
    """Whether a request is a pass that leaves a gradient."""
    return isinstance(request, ForwardBackward) and request.backward
