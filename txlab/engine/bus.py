"""A bounded bus and per-adapter history: all that a widget may see of the engine.

The engine thread publishes (an append under a lock, no formatting); any other thread reads a consistent copy, and one
that is slow holds nobody up. However much is published, memory grows with the number of loaded adapters alone.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from txlab.engine.adapter_history import GRAD_NORM, LEARNING_RATE, LOSS, AdapterHistory, AdapterView, Point
from txlab.engine.events import (
    AdapterCreated,
    BatchCompleted,
    EngineLoad,
    Event,
    ProgramCompiled,
    SampleCompleted,
    SampleProgress,
    StateChanged,
)
from txlab.engine.series import Tail

__all__ = ["GRAD_NORM", "LEARNING_RATE", "LOSS", "AdapterView", "EventBus", "LabView", "LiveSample", "Point"]

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_UNLOADED = 64  # adapters that are remembered after they were unloaded
STREAMED_TOKENS = 1024  # of a sequence that is being sampled


@dataclass(frozen=True, slots=True, eq=False)
class LiveSample:
    """A sequence that is being sampled, as far as it is: the newest of its tokens."""

    model_id: str | None
    prompt: np.ndarray  # (P,) int32
    tokens: np.ndarray  # (n,) int32
    logprobs: np.ndarray  # (n,) float32
    drawn: int  # tokens so far, those too that are not here any more


@dataclass(frozen=True, slots=True, eq=False)
class LabView:
    """All that a board shows, at one moment. ``version`` grows with every event."""

    version: int
    adapters: tuple[AdapterView, ...]  # in order of creation
    samples: tuple[SampleCompleted, ...]  # newest first
    compiles: int
    compile_seconds: float
    streaming: tuple[LiveSample, ...] = ()  # being sampled, newest first
    trained_tokens: int = 0  # of all adapters, forward passes too
    trained_positions: int = 0  # what the device computed for them, padding included
    load: EngineLoad = field(default_factory=EngineLoad)

    @property
    def padding(self) -> float | None:
        """The share of trained positions that held no token; None before there were any."""
        return 1 - self.trained_tokens / self.trained_positions if self.trained_positions else None


class EventBus:
    """Where the engine publishes and everybody else looks. Any thread may call it.

    It keeps the histories of all loaded adapters and of the last ``unloaded`` others, the last ``samples`` sequences,
    and of as many that are being sampled the newest tokens.
    """

    def __init__(self, samples: int = 64, unloaded: int = MAX_UNLOADED):
        self._changed = threading.Condition()
        self._version = 0
        self._adapters: dict[str, AdapterHistory] = {}
        self._unloaded: dict[str, None] = {}  # model ids, the first to go first
        self._most_unloaded = unloaded
        self._samples: deque[SampleCompleted] = deque(maxlen=samples)
        self._streaming: dict[tuple[int, int], _Stream] = {}
        self._most_streaming = samples
        self._compiles = 0
        self._compile_seconds = 0.0
        self._tokens = self._positions = 0
        self._load = EngineLoad()
        self._event_listeners = _Listeners[Event]()
        self._point_listeners = _Listeners[Point]()

    def publish(self, event: Event) -> None:
        """Fold an event into the history and wake whoever waits. Never blocks for long, never raises for a view."""
        with self._changed:
            point = self._fold(event)
            self._version += 1
            self._changed.notify_all()
        self._event_listeners.tell(event)
        if point is not None:
            self._point_listeners.tell(point)

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call ``listener`` with every event until the returned function is called.

        It runs on the thread that publishes, and must not block.
        """
        return self._event_listeners.add(listener)

    def listen_to_points(self, listener: Callable[[Point], None]) -> Callable[[], None]:
        """Call ``listener`` as ``listen`` does, with every point that an adapter's curves get."""
        return self._point_listeners.add(listener)

    def wait(self, seen: int, timeout: float | None = None) -> int:
        """Block until something newer than version ``seen`` was published; the present version."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > seen, timeout)
            return self._version

    def wake(self) -> None:
        """Let every waiting thread look again, for example because it should end."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def view(self) -> LabView:
        """A consistent copy of everything."""
        with self._changed:
            return LabView(
                version=self._version,
                adapters=tuple(history.view() for history in self._adapters.values()),
                samples=tuple(reversed(self._samples)),
                compiles=self._compiles,
                compile_seconds=self._compile_seconds,
                streaming=tuple(stream.view() for stream in reversed(self._streaming.values())),
                trained_tokens=self._tokens,
                trained_positions=self._positions,
                load=self._load,
            )

    def _fold(self, event: Event) -> Point | None:
        match event:
            case AdapterCreated():
                self._adapters[event.model_id] = AdapterHistory(event)
                self._unloaded.pop(event.model_id, None)
            case SampleProgress():
                self._follow(event)
            case SampleCompleted():
                self._samples.append(event)
            case BatchCompleted():
                self._tokens += event.tokens
                self._positions += event.positions
            case ProgramCompiled():
                self._compiles += 1
                self._compile_seconds += event.seconds
            case EngineLoad():
                self._load = event
            case _:
                history = self._adapters.get(event.model_id)
                point = None if history is None else history.fold(event)
                if history is not None and isinstance(event, StateChanged) and event.state == "unloaded":
                    self._forget_old(event.model_id)
                return point
        return None

    def _follow(self, event: SampleProgress) -> None:
        if event.ended:
            self._streaming.pop(event.key, None)
        elif event.key in self._streaming:
            self._streaming[event.key].extend(event)
        elif len(self._streaming) < self._most_streaming:
            self._streaming[event.key] = _Stream(event)

    def _forget_old(self, unloaded: str) -> None:
        """Keep a few of those that were unloaded: their curves are looked at for a while."""
        self._unloaded[unloaded] = None
        while len(self._unloaded) > self._most_unloaded:
            oldest = next(iter(self._unloaded))
            del self._unloaded[oldest], self._adapters[oldest]


class _Stream:
    """A sequence that is being sampled."""

    def __init__(self, first: SampleProgress):
        self._model_id, self._prompt = first.model_id, first.prompt
        self._tokens, self._logprobs = Tail(STREAMED_TOKENS, np.int32), Tail(STREAMED_TOKENS, np.float32)
        self.extend(first)

    def extend(self, more: SampleProgress) -> None:
        self._tokens.extend(more.tokens)
        self._logprobs.extend(more.logprobs)

    def view(self) -> LiveSample:
        tokens, logprobs = self._tokens.numbers, self._logprobs.numbers
        return LiveSample(self._model_id, self._prompt, tokens, logprobs, self._tokens.added)


class _Listeners(Generic[T]):
    """Functions that are told of everything; one that fails harms nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: tuple[Callable[[T], None], ...] = ()

    def add(self, listener: Callable[[T], None]) -> Callable[[], None]:
        def own(item: T) -> None:  # tells apart two listeners that are the same function
            listener(item)

        def end() -> None:
            with self._lock:
                self._all = tuple(other for other in self._all if other is not own)

        with self._lock:
            self._all = (*self._all, own)
        return end

    def tell(self, item: T) -> None:
        for listener in self._all:
            try:
                listener(item)
            except Exception:
                log.exception("a listener failed")
