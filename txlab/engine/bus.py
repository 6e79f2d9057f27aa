"""A bounded bus and per-adapter history: all that a widget may see of the engine.

The engine thread publishes (an append under a lock, no formatting); any other thread reads a consistent
copy. Memory is bounded, whatever is published.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from txlab.engine.events import (
    AdapterCreated,
    AdapterRenamed,
    AdapterRewound,
    BatchCompleted,
    EngineLoad,
    Event,
    MetricsLogged,
    PassCompleted,
    ProgramCompiled,
    SampleCompleted,
    SampleProgress,
    State,
    StateChanged,
    StepCompleted,
    StepsKept,
)
from txlab.engine.series import Series
from txlab.lora.state import LoraConfig

log = logging.getLogger(__name__)

MAX_METRICS = 64  # curves of one adapter; names beyond that are not followed
LOSS, GRAD_NORM, LEARNING_RATE = "loss", "grad_norm", "learning_rate"  # what every adapter has a curve of


@dataclass(frozen=True, slots=True, eq=False)
class AdapterView:
    """What is known of one adapter. ``loss`` is per unit of weight (per trained token), by optimizer step."""

    model_id: str
    name: str
    lora: LoraConfig
    memory_bytes: int  # on the device
    created: float = 0.0  # seconds since the epoch
    state: State = "idle"
    message: str = ""
    step: int = 0
    learning_rate: float | None = None
    grad_norm: float | None = None  # of the last step, before clipping
    tokens: int = 0  # trained so far
    tokens_per_second: float | None = None  # of the last training pass
    loss: float | None = None
    kept_steps: tuple[int, ...] = ()  # that it can be rewound to or forked from
    host_bytes: int = 0  # of these steps
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> (n, 4), see series.COLUMNS

    @property
    def rank(self) -> int:
        """Of its low-rank factors."""
        return self.lora.rank

    @property
    def owner(self) -> str:
        """The session that it belongs to."""
        return self.model_id.partition(":")[0]


@dataclass(frozen=True, slots=True, eq=False)
class LiveSample:
    """A sequence that is being sampled, as far as it is."""

    model_id: str | None
    prompt: np.ndarray  # (P,) int32
    tokens: np.ndarray  # (n,) int32
    logprobs: np.ndarray  # (n,) float32


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
    """Where the engine publishes and everybody else looks."""

    def __init__(self, samples: int = 64):
        self._changed = threading.Condition()
        self._version = 0
        self._adapters: dict[str, _History] = {}
        self._samples: deque[SampleCompleted] = deque(maxlen=samples)
        self._streaming: dict[tuple[int, int], list[SampleProgress]] = {}
        self._most_streaming = samples
        self._compiles = 0
        self._compile_seconds = 0.0
        self._tokens = self._positions = 0
        self._load = EngineLoad()
        self._listeners: tuple[Callable[[Event], None], ...] = ()

    def publish(self, event: Event) -> None:
        """Fold an event into the history and wake whoever waits. Never blocks for long, never raises for a view."""
        with self._changed:
            self._fold(event)
            self._version += 1
            self._changed.notify_all()
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed")

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call ``listener`` with every event until the returned function is called.

        It runs on the thread that publishes, and must not block.
        """
        with self._changed:
            self._listeners = (*self._listeners, listener)

        def end() -> None:
            with self._changed:
                self._listeners = tuple(other for other in self._listeners if other is not listener)

        return end

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
                streaming=tuple(_live(parts) for parts in reversed(self._streaming.values())),
                trained_tokens=self._tokens,
                trained_positions=self._positions,
                load=self._load,
            )

    def _fold(self, event: Event) -> None:
        match event:
            case AdapterCreated():
                self._adapters[event.model_id] = _History(event)
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
                if history is not None:
                    history.fold(event)

    def _follow(self, event: SampleProgress) -> None:
        if event.ended:
            self._streaming.pop(event.key, None)
        elif event.key in self._streaming or len(self._streaming) < self._most_streaming:
            self._streaming.setdefault(event.key, []).append(event)


def _live(parts: list[SampleProgress]) -> LiveSample:
    tokens, logprobs = (np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "logprobs"))
    return LiveSample(parts[0].model_id, parts[0].prompt, tokens, logprobs)


class _History:
    """An adapter's latest figures, its curves, and the loss of the step that is being accumulated."""

    def __init__(self, made: AdapterCreated):
        self._latest = AdapterView(
            made.model_id, made.name, made.lora, made.memory_bytes, created=time.time(), step=made.step
        )
        self._curves: dict[str, Series] = {}
        self._clear()

    def _clear(self) -> None:
        self._loss = self._weight = 0.0
        self._metrics: dict[str, list[float]] = {}  # of the passes since the last step

    def view(self) -> AdapterView:
        """An immutable copy, safe to draw from any thread."""
        return replace(self._latest, curves={name: series.points for name, series in self._curves.items()})

    def fold(
        self,
        event: PassCompleted
        | StepCompleted
        | MetricsLogged
        | StateChanged
        | StepsKept
        | AdapterRenamed
        | AdapterRewound,
    ) -> None:
        match event:
            case PassCompleted(backward=True):
                self._take_pass(event)
            case StepCompleted():
                self._take_step(event)
            case MetricsLogged():
                step = self._latest.step if event.step is None else event.step
                for name, value in event.metrics.items():
                    self._add(name, step, value)
            case StateChanged():
                self._latest = replace(self._latest, state=event.state, message=event.message)
            case StepsKept():
                self._latest = replace(self._latest, kept_steps=event.steps, host_bytes=event.host_bytes)
            case AdapterRenamed():
                self._latest = replace(self._latest, name=event.name)
            case AdapterRewound():
                self._rewind(event.step)

    def _take_pass(self, event: PassCompleted) -> None:
        self._loss += event.loss
        self._weight += event.weight
        for name, value in event.metrics.items():
            self._metrics.setdefault(name, []).append(value)
        self._latest = replace(
            self._latest,
            loss=self._loss / max(self._weight, 1e-9),
            tokens=self._latest.tokens + event.tokens,
            tokens_per_second=event.tokens / max(event.seconds, 1e-9),
        )

    def _take_step(self, event: StepCompleted) -> None:
        if self._weight:
            self._add(LOSS, event.step, self._loss / self._weight)
        self._add(GRAD_NORM, event.step, event.grad_norm)
        self._add(LEARNING_RATE, event.step, event.learning_rate)
        for name, values in self._metrics.items():
            self._add(name, event.step, sum(values) / len(values))
        self._clear()
        self._latest = replace(
            self._latest,
            step=event.step,
            learning_rate=event.learning_rate,
            grad_norm=event.grad_norm,
            memory_bytes=event.memory_bytes,
        )

    def _rewind(self, step: int) -> None:
        for series in self._curves.values():
            series.cut(step)
        self._clear()
        self._latest = replace(self._latest, step=step)

    def _add(self, name: str, step: float, value: float) -> None:
        if name not in self._curves and len(self._curves) >= MAX_METRICS:
            return
        seconds = time.time() - self._latest.created
        self._curves.setdefault(name, Series()).append(step, self._latest.tokens, seconds, value)
