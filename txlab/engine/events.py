"""Typed events, a bounded bus and per-adapter history: all that a widget may see of the engine.

The engine thread publishes (an append under a lock, no formatting); any other thread reads a consistent
copy. Memory is bounded: a series that outgrows its limit is thinned to every second point.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

State = Literal["queued", "training", "sampling", "idle", "failed", "unloaded"]


@dataclass(frozen=True, slots=True)
class AdapterCreated:
    """An adapter exists; ``memory_bytes`` is what it holds on the device."""

    model_id: str
    name: str
    rank: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class PassCompleted:
    """A forward or forward_backward ended. ``loss`` is its sum, ``weight`` what it is a sum over."""

    model_id: str
    loss: float
    weight: float  # sum of |weights| of cross-entropy, else the number of tokens
    tokens: int  # without padding
    seconds: float
    backward: bool


@dataclass(frozen=True, slots=True)
class StepCompleted:
    """An optimizer step ended; ``grad_norm`` is the norm before clipping."""

    model_id: str
    step: int
    learning_rate: float
    grad_norm: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class SampleProgress:
    """A sequence has more tokens, or ended, finished or not. ``key``: the request's number, the sequence's index."""

    key: tuple[int, int]
    model_id: str | None  # as in SampleCompleted
    prompt: np.ndarray  # (P,) int32
    tokens: np.ndarray  # (n,) int32, the new ones
    logprobs: np.ndarray  # (n,) float32
    ended: bool


@dataclass(frozen=True, slots=True, eq=False)
class SampleCompleted:
    """One sampled sequence. ``model_id`` is the adapter that the snapshot was taken of, None for the base."""

    model_id: str | None
    prompt: np.ndarray  # (P,) int32
    tokens: np.ndarray  # (n,) int32
    logprobs: np.ndarray  # (n,) float32
    stop_reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StateChanged:
    """An adapter is doing something else now."""

    model_id: str
    state: State
    message: str = ""


@dataclass(frozen=True, slots=True)
class BatchCompleted:
    """One micro-batch of training went through the device: its tokens, and the positions that they took."""

    tokens: int
    positions: int


@dataclass(frozen=True, slots=True)
class ProgramCompiled:
    """XLA compiled (or fetched from the cache) one program."""

    program: str
    seconds: float


Event = (
    AdapterCreated
    | PassCompleted
    | StepCompleted
    | SampleProgress
    | SampleCompleted
    | StateChanged
    | BatchCompleted
    | ProgramCompiled
)


class Series:
    """A curve of bounded length: at ``limit`` points every second one is dropped. The first and the newest stay."""

    def __init__(self, limit: int = 4096):
        self._limit = limit
        self._points: list[tuple[float, float]] = []

    def append(self, x: float, y: float) -> None:
        if len(self._points) >= self._limit:
            self._points = self._points[::2]
        self._points.append((x, y))

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """(x, y) pairs in order of x."""
        return tuple(self._points)


@dataclass(frozen=True, slots=True)
class AdapterView:
    """What is known of one adapter. ``loss`` is per unit of weight (per trained token), by optimizer step."""

    model_id: str
    name: str
    rank: int
    memory_bytes: int
    state: State = "idle"
    message: str = ""
    step: int = 0
    learning_rate: float | None = None
    grad_norm: float | None = None  # of the last step, before clipping
    tokens: int = 0  # trained so far
    tokens_per_second: float | None = None  # of the last training pass
    loss: float | None = None
    curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)


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

    def publish(self, event: Event) -> None:
        """Fold an event into the history and wake whoever waits. Never blocks for long, never raises for a view."""
        with self._changed:
            self._fold(event)
            self._version += 1
            self._changed.notify_all()

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
            )

    def _fold(self, event: Event) -> None:
        match event:
            case AdapterCreated(model_id, name, rank, memory_bytes):
                self._adapters[model_id] = _History(AdapterView(model_id, name, rank, memory_bytes))
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

    def __init__(self, latest: AdapterView):
        self._latest = latest
        self._curves = {"loss": Series(), "grad_norm": Series()}
        self._loss = self._weight = 0.0

    def view(self) -> AdapterView:
        """An immutable copy, safe to draw from any thread."""
        return replace(self._latest, curves={name: series.points for name, series in self._curves.items()})

    def fold(self, event: PassCompleted | StepCompleted | StateChanged) -> None:
        match event:
            case PassCompleted(backward=True):
                self._take_pass(event)
            case StepCompleted():
                self._take_step(event)
            case StateChanged():
                self._latest = replace(self._latest, state=event.state, message=event.message)

    def _take_pass(self, event: PassCompleted) -> None:
        self._loss += event.loss
        self._weight += event.weight
        self._latest = replace(
            self._latest,
            loss=self._loss / max(self._weight, 1e-9),
            tokens=self._latest.tokens + event.tokens,
            tokens_per_second=event.tokens / max(event.seconds, 1e-9),
        )

    def _take_step(self, event: StepCompleted) -> None:
        if self._weight:
            self._curves["loss"].append(event.step, self._loss / self._weight)
        self._curves["grad_norm"].append(event.step, event.grad_norm)
        self._loss = self._weight = 0.0
        self._latest = replace(
            self._latest,
            step=event.step,
            learning_rate=event.learning_rate,
            grad_norm=event.grad_norm,
            memory_bytes=event.memory_bytes,
        )
