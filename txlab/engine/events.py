"""Typed events, a bounded bus and per-adapter history: all that a widget may see of the engine.

The engine thread publishes (an append under a lock, no formatting); any other thread reads a consistent
copy. Memory is bounded: a series that outgrows its limit is thinned to every second point.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
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
class ProgramCompiled:
    """XLA compiled (or fetched from the cache) one program."""

    program: str
    seconds: float


Event = AdapterCreated | PassCompleted | StepCompleted | SampleCompleted | StateChanged | ProgramCompiled


class Series:
    """A curve of bounded length: at ``limit`` points every second one is dropped, first and last kept."""

    def __init__(self, limit: int = 4096):
        self._limit = limit
        self._points: list[tuple[float, float]] = []

    def append(self, x: float, y: float) -> None:
        if len(self._points) >= self._limit:
            self._points = self._points[:-1:2] + self._points[-1:]
        self._points.append((x, y))

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """(x, y) pairs in order of x."""
        return tuple(self._points)


@dataclass(slots=True)
class AdapterHistory:
    """What is known of one adapter. ``loss`` is per unit of weight (per trained token), by optimizer step."""

    model_id: str
    name: str
    rank: int
    memory_bytes: int
    state: State = "idle"
    message: str = ""
    step: int = 0
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int = 0  # trained so far
    tokens_per_second: float | None = None  # of the last training pass
    loss: float | None = None
    curves: Mapping[str, Series] = field(default_factory=lambda: {"loss": Series(), "grad_norm": Series()})
    pending_loss: float = 0.0
    pending_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class AdapterView:
    """An immutable copy of an adapter's history, safe to draw from any thread."""

    model_id: str
    name: str
    rank: int
    memory_bytes: int
    state: State
    message: str
    step: int
    learning_rate: float | None
    grad_norm: float | None
    tokens: int
    tokens_per_second: float | None
    loss: float | None
    curves: Mapping[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True, slots=True, eq=False)
class LabView:
    """All that a board shows, at one moment. ``version`` grows with every event."""

    version: int
    adapters: tuple[AdapterView, ...]  # in order of creation
    samples: tuple[SampleCompleted, ...]  # newest first
    compiles: int
    compile_seconds: float


class EventBus:
    """Where the engine publishes and everybody else looks."""

    def __init__(self, samples: int = 64):
        self._changed = threading.Condition()
        self._version = 0
        self._adapters: dict[str, AdapterHistory] = {}
        self._samples: deque[SampleCompleted] = deque(maxlen=samples)
        self._compiles = 0
        self._compile_seconds = 0.0

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
                adapters=tuple(_freeze(a) for a in self._adapters.values()),
                samples=tuple(reversed(self._samples)),
                compiles=self._compiles,
                compile_seconds=self._compile_seconds,
            )

    def _fold(self, event: Event) -> None:
        match event:
            case AdapterCreated():
                self._adapters[event.model_id] = AdapterHistory(
                    event.model_id, event.name, event.rank, event.memory_bytes
                )
            case SampleCompleted():
                self._samples.append(event)
            case ProgramCompiled():
                self._compiles += 1
                self._compile_seconds += event.seconds
            case _:
                adapter = self._adapters.get(event.model_id)
                if adapter is not None:
                    _fold_adapter(adapter, event)


def _fold_adapter(adapter: AdapterHistory, event: PassCompleted | StepCompleted | StateChanged) -> None:
    match event:
        case PassCompleted(backward=True):
            adapter.pending_loss += event.loss
            adapter.pending_weight += event.weight
            adapter.tokens += event.tokens
            adapter.tokens_per_second = event.tokens / max(event.seconds, 1e-9)
            adapter.loss = adapter.pending_loss / max(adapter.pending_weight, 1e-9)
        case StepCompleted():
            if adapter.pending_weight:
                adapter.curves["loss"].append(event.step, adapter.pending_loss / adapter.pending_weight)
            adapter.pending_loss = adapter.pending_weight = 0.0
            adapter.curves["grad_norm"].append(event.step, event.grad_norm)
            adapter.step = event.step
            adapter.learning_rate = event.learning_rate
            adapter.grad_norm = event.grad_norm
            adapter.memory_bytes = event.memory_bytes
        case StateChanged():
            adapter.state = event.state
            adapter.message = event.message


def _freeze(adapter: AdapterHistory) -> AdapterView:
    return AdapterView(
        model_id=adapter.model_id,
        name=adapter.name,
        rank=adapter.rank,
        memory_bytes=adapter.memory_bytes,
        state=adapter.state,
        message=adapter.message,
        step=adapter.step,
        learning_rate=adapter.learning_rate,
        grad_norm=adapter.grad_norm,
        tokens=adapter.tokens,
        tokens_per_second=adapter.tokens_per_second,
        loss=adapter.loss,
        curves={name: series.points for name, series in adapter.curves.items()},
    )
