"""What is known of one adapter: its latest figures, and its curves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from txlab.engine.events import (
    AdapterCreated,
    AdapterRenamed,
    AdapterRewound,
    GradientDropped,
    MetricsLogged,
    PassCompleted,
    State,
    StateChanged,
    StepCompleted,
    StepsKept,
)
from txlab.engine.series import Series
from txlab.lora.state import LoraConfig

MAX_MARKS = 8  # of the newest steps that have any
MAX_METRICS = 64  # curves of one adapter: further names are not followed, but for those that every one has
LOSS, GRAD_NORM, LEARNING_RATE = OWN_CURVES = ("loss", "grad_norm", "learning_rate")  # what every adapter has

AdapterEvent = (
    PassCompleted
    | StepCompleted
    | MetricsLogged
    | StateChanged
    | StepsKept
    | AdapterRenamed
    | AdapterRewound
    | GradientDropped
)


@dataclass(frozen=True, slots=True)
class Point:
    """What the curves of an adapter get at one moment: by an optimizer step, or from a user."""

    model_id: str
    step: int
    tokens: int  # trained until then
    time: float  # seconds since the epoch
    metrics: Mapping[str, float]
    marks: tuple[str, ...] = ()  # what is remarkable about the step, in words


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AdapterView:
    """What is known of one adapter. ``loss`` is per unit of weight (per trained token), by optimizer step.

    Until something new is known it is the same object.
    """

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
    marks: tuple[tuple[int, str], ...] = ()  # steps about which something is remarkable, and what
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> (n, 4), see series.COLUMNS

    @property
    def rank(self) -> int:
        """Of its low-rank factors."""
        return self.lora.rank

    @property
    def owner(self) -> str:
        """The session that it belongs to."""
        return self.model_id.partition(":")[0]


def metric_names(adapters: Iterable[AdapterView]) -> list[str]:
    """Names of all their curves: those that every adapter has, then the rest by name."""
    return [*OWN_CURVES, *sorted({name for one in adapters for name in one.curves}.difference(OWN_CURVES))]


class AdapterHistory:
    """Folds an adapter's events into its figures and curves. Not thread-safe: the bus locks."""

    def __init__(self, made: AdapterCreated):
        self._latest = AdapterView(
            made.model_id, made.name, made.lora, made.memory_bytes, created=time.time(), step=made.step
        )
        self._curves: dict[str, Series] = {}
        self._view: AdapterView | None = None  # none where something came since it was looked at
        self._begin_step()

    def _begin_step(self) -> None:
        """Nothing was accumulated yet."""
        self._loss = self._weight = 0.0
        self._stepped_tokens = self._latest.tokens
        self._means: dict[str, tuple[float, int]] = {}  # of the passes' other metrics: sum and number

    def view(self) -> AdapterView:
        """An immutable copy, safe to draw from any thread."""
        if self._view is None:
            curves = {name: series.points for name, series in self._curves.items()}
            self._view = replace(self._latest, curves=curves)
        return self._view

    def fold(self, event: AdapterEvent) -> Point | None:
        """Take an event in; the point that the curves got, if any."""
        if self._latest.state == "unloaded":
            return None  # samples of its snapshots may still end
        self._view = None
        match event:
            case PassCompleted(backward=True):
                self._take_pass(event)
            case StepCompleted():
                return self._take_step(event)
            case MetricsLogged():
                return self._take_metrics(event)
            case StateChanged():
                self._latest = replace(self._latest, state=event.state, message=event.message)
            case StepsKept():
                self._latest = replace(self._latest, kept_steps=event.steps, host_bytes=event.host_bytes)
            case AdapterRenamed():
                self._latest = replace(self._latest, name=event.name)
            case AdapterRewound():
                self._rewind(event.step)
            case GradientDropped():
                self._drop_passes()
        return None

    def _take_pass(self, event: PassCompleted) -> None:
        self._loss += event.loss
        self._weight += event.weight
        for name, value in event.metrics.items():
            if name in self._means or len(self._means) < MAX_METRICS:
                total, count = self._means.get(name, (0.0, 0))
                self._means[name] = total + value, count + 1
        self._latest = replace(
            self._latest,
            loss=self._loss / max(self._weight, 1e-9),
            tokens=self._latest.tokens + event.tokens,
            tokens_per_second=event.tokens / max(event.seconds, 1e-9),
        )

    def _take_step(self, event: StepCompleted) -> Point:
        means = {name: total / count for name, (total, count) in self._means.items()}
        own = {LOSS: self._loss / self._weight} if self._weight else {}
        own |= {GRAD_NORM: event.grad_norm, LEARNING_RATE: event.learning_rate}
        self._begin_step()
        self._latest = replace(
            self._latest,
            step=event.step,
            learning_rate=event.learning_rate,
            grad_norm=event.grad_norm,
            memory_bytes=event.memory_bytes,
            marks=(*self._latest.marks, *((event.step, mark) for mark in event.marks))[-MAX_MARKS:],
        )
        point = self._add(event.step, self._latest.tokens, time.time(), own | means | own)
        return replace(point, marks=event.marks)

    def _take_metrics(self, event: MetricsLogged) -> Point:
        step = self._latest.step if event.step is None else event.step
        return self._add(step, *self._moment(step), event.metrics)

    def _moment(self, step: int) -> tuple[int, float]:
        """Trained tokens and time of a step that lies behind; of any other, those of now."""
        if step >= self._latest.step or GRAD_NORM not in self._curves:
            return self._latest.tokens, time.time()
        steps, tokens, seconds, _ = self._curves[GRAD_NORM].points.T
        return round(np.interp(step, steps, tokens)), self._latest.created + float(np.interp(step, steps, seconds))

    def _rewind(self, step: int) -> None:
        for series in self._curves.values():
            series.cut(step)
        self._drop_passes()
        marks = tuple(mark for mark in self._latest.marks if mark[0] <= step)
        self._latest = replace(
            self._latest,
            step=step,
            grad_norm=self._newest(GRAD_NORM),
            learning_rate=self._newest(LEARNING_RATE),
            marks=marks,
        )

    def _drop_passes(self) -> None:
        """The passes since the last step leave no trace."""
        self._latest = replace(self._latest, tokens=self._stepped_tokens, loss=self._newest(LOSS))
        self._begin_step()

    def _newest(self, curve: str) -> float | None:
        """The newest value of a curve, None where it has none."""
        last = self._curves[curve].points[-1:, 3].tolist() if curve in self._curves else []
        return last[0] if last else None

    def _add(self, step: int, tokens: int, moment: float, metrics: Mapping[str, float]) -> Point:
        seconds = moment - self._latest.created
        metrics = {name: float(value) for name, value in metrics.items()}
        for name, value in metrics.items():
            if name in self._curves or name in OWN_CURVES or len(self._curves) < MAX_METRICS:
                self._curves.setdefault(name, Series()).append(step, tokens, seconds, value)
        return Point(self._latest.model_id, step, tokens, moment, metrics)
