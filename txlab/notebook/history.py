"""Figures of a training run over its steps: the user's own are logged, all are kept with the run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from txlab.engine.adapter_history import LEARNING_RATE, OWN_CURVES, Point
from txlab.engine.bus import EventBus
from txlab.engine.events import MetricsLogged
from txlab.notebook.adapters import namesakes
from txlab.notebook.errors import TxlabError, shortly
from txlab.notebook.served import LabPart
from txlab.notebook.views.tables import Column, face_html, line_html, plural, table_html, table_text
from txlab.notebook.views.text import number

if TYPE_CHECKING:
    from txlab.store.records import Records
    from txlab.store.tables import OriginRow

FIXED = ("step", "tokens", "seconds", "time")  # columns that every history has
MAX_STEP = 2**53  # as far as float64 counts
MAX_NAME = 100  # characters of a metric's name
SHOWN_ROWS, SHOWN_METRICS, SHOWN_MARKS = 10, 8, 8  # in a history's face

LogPoint = tuple[int, int, float, dict[str, float]]  # step, trained tokens, seconds since the epoch, metrics


class History(dict[str, np.ndarray]):
    """All steps that a run ever took, in that order: a dict of columns, so that ``pandas.DataFrame(history)`` works.

    ``step`` and ``tokens`` (trained until then) are (n,) int64, ``seconds`` since the run was made (n,) float64,
    ``time`` (n,) datetime64[ms] in UTC. Each metric has a column (n,) float64, NaN where a step has none.

    A step that was taken again after a rewind has a row for each time, and so has one for which the same metric was
    logged twice. Metrics of the user's own are the first.
    """

    def __init__(
        self,
        name: str,
        model_id: str,
        columns: Mapping[str, np.ndarray],
        marks: Iterable[tuple[int, str]] = (),
        origin: Origin | None = None,
    ):
        super().__init__(columns)
        self.name = name  # of the run
        self.model_id = model_id
        self.marks = tuple(marks)  # steps about which something is remarkable, and what
        self.origin = origin  # the checkpoint that it began with, if any

    @property
    def rows(self) -> int:
        """How long each column is."""
        return len(self["step"])

    def __repr__(self) -> str:
        return "\n".join([self._title(), table_text(*self._excerpt()), *self._notes()])

    def _repr_html_(self) -> str:
        """The first and the last rows."""
        notes = map(line_html, self._notes())
        return face_html(self._title(), table_html(*self._excerpt(), caption=self._title()), *notes)

    def _notes(self) -> list[str]:
        """Where it began, and the newest marks."""
        left_out = len(self.marks) - SHOWN_MARKS
        more = [f"… and {left_out} earlier marks in .marks"] if left_out > 0 else []
        began = [] if self.origin is None else [self.origin.note()]
        return began + [f"step {step:,}: {text}" for step, text in self.marks[-SHOWN_MARKS:]] + more

    def _title(self) -> str:
        metrics = len(self) - len(FIXED)
        hidden = f", {SHOWN_METRICS} of {metrics} metrics" if metrics > SHOWN_METRICS else ""
        return f"{self.name} ({self.model_id}): {plural(self.rows, 'row')}{hidden}"

    def _excerpt(self) -> tuple[list[Column], list[tuple[str, ...]]]:
        half = SHOWN_ROWS // 2
        shown = [name for name in self if name != "time"][: len(FIXED) - 1 + SHOWN_METRICS]
        texts = [_texts(self[name], half) for name in shown]
        return [Column(name, "number") for name in shown], list(zip(*texts, strict=True))


@dataclass(frozen=True, slots=True)
class Origin:
    """The checkpoint that a run began with."""

    parent_id: str  # the run that it was saved in
    parent: str  # and what that is called
    checkpoint: str  # its name
    step: int
    rows: int  # of the history, from its beginning, that are the parent's

    def note(self) -> str:
        """One line about it for a reader."""
        began = f"began with {self.checkpoint} of {self.parent} ({self.parent_id}) at step {self.step:,}"
        return f"{began}; the first {plural(self.rows, 'row')} are from there" if self.rows else began


def _texts(column: np.ndarray, half: int) -> list[str]:
    """A column's first and last numbers, with an ellipsis where some between are left out."""
    if len(column) <= 2 * half:
        return [_text(value) for value in column.tolist()]
    return [*_texts(column[:half], half), "…", *_texts(column[-half:], half)]


def _text(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else number(None if np.isnan(value) else value)


class Histories(LabPart):
    """What runs came to, step by step."""

    def log(self, adapter: str, step: int | None = None, /, **metrics: float) -> None:
        """Draw figures of your own beside an adapter's loss, and keep them: ``lab.log("pirate", 12, reward=0.3)``.

        Any thread may call it.

        Args:
            adapter: its name or run id; of several that are called the same the newest.
            step: the optimizer step that they belong to, counted from 1; None is the last one taken.
            metrics: numbers by name, of Python, NumPy or JAX; NaN and infinities are allowed.

        Raises:
            TxlabError: the lab is stopped, there is no such adapter, or an argument is not as it should be.
        """
        self._serving()
        values, at = as_metrics(metrics), None if step is None else as_step(step)
        model_id = namesakes(self._bus.view().adapters, adapter)[0].model_id
        self._bus.publish(MetricsLogged(model_id, values, at))

    def history(self, run: str) -> History:
        """Every step of a run, those before a rewind too, with all metrics; ``pandas.DataFrame(...)`` of it works.

        It is read from the lab's folder, so runs of earlier kernels have one, and a stopped lab tells it too.

        Steps about which something is remarkable, such as one without a gradient, are in ``marks``. A run that was
        resumed from a checkpoint says so in ``origin``. Where the optimizer was resumed too, the history begins with
        that of the checkpoint's run, up to the checkpoint; the ``seconds`` of those rows are below 0. Where only the
        weights were loaded, steps count from 1 again, and it has the rows of its own run alone.

        Args:
            run: its id, or an adapter's name; of several that are called the same the newest.

        Raises:
            TxlabError: there is no such run.
        """
        with self._stored() as store:
            return read_history(store.records, run)


def keep_history(bus: EventBus, records: Records) -> Callable[[], None]:
    """Write down what the curves get, until the returned function is called. It only queues: nobody waits for it."""
    from txlab.store.tables import MarkRow, PointRow

    def keep(point: Point) -> None:
        row = PointRow(
            model_id=point.model_id, step=point.step, tokens=point.tokens, time=point.time, metrics=dict(point.metrics)
        )
        records.add(row)
        for mark in point.marks:
            records.add(MarkRow(model_id=point.model_id, step=point.step, time=point.time, text=mark))

    return bus.listen_to_points(keep)


def read_history(records: Records, run: str) -> History:
    """A run's history by its id or name. Raises TxlabError where there is no such run."""
    found = records.find_run(run)
    model_id = found.model_id if found else run
    own = records.points(model_id)
    if found is None and not own:
        names = ", ".join(repr(row.name) for row in records.runs(8, 0)[0]) or "none yet"
        raise TxlabError(f"There is no run {run!r}. The newest runs: {names}.")
    began = found.created.timestamp() if found else own[0][2]
    name = found.name if found and found.name else model_id
    earlier = _before_resuming(records, model_id)
    marks = [(step, text) for step, _, text in (*earlier.marks, *records.marks(model_id))]
    return History(name, model_id, to_columns(earlier.continued_by(own), began), marks, earlier.origin(records))


LogMark = tuple[int, float, str]  # step, seconds since the epoch, text


@dataclass(frozen=True, slots=True)
class _Earlier:
    """History of an adapter in the runs before its own, from checkpoint to checkpoint."""

    row: OriginRow | None = None
    points: tuple[LogPoint, ...] = ()
    marks: tuple[LogMark, ...] = ()

    def continued_by(self, points: Iterable[LogPoint]) -> list[LogPoint]:
        trained = self.points[-1][1] if self.points else 0
        return [*self.points, *((step, trained + tokens, time, metrics) for step, tokens, time, metrics in points)]

    def origin(self, records: Records) -> Origin | None:
        if self.row is None:
            return None
        parent = records.run(self.row.parent_id)
        name = parent.name if parent else self.row.parent_id
        return Origin(self.row.parent_id, name, self.row.checkpoint, self.row.step, len(_rows(self.points)))


def _before_resuming(records: Records, model_id: str) -> _Earlier:
    row = records.origin(model_id)
    if row is None or not row.continues:
        return _Earlier(row)
    before, parent = _before_resuming(records, row.parent_id), row.parent_id
    saved = row.saved.timestamp()

    def counts(step: int, time: float, own: bool = False) -> bool:
        return step <= row.step and (own or time <= saved)  # later, the parent may have taken these steps anew

    points = [p for p in before.continued_by(records.points(parent)) if counts(p[0], p[2], LEARNING_RATE not in p[3])]
    marks = [mark for mark in (*before.marks, *records.marks(parent)) if counts(*mark[:2])]
    return _Earlier(row, tuple(points), tuple(marks))


def to_columns(points: Iterable[LogPoint], began: float) -> dict[str, np.ndarray]:
    """The columns of a History, from points in the order in which they came; ``began`` in seconds since the epoch.

    Metrics that were logged come before those of steps and losses, so that a wide table shows them.
    """
    points = list(points)
    logged = [name for *_, metrics in points if LEARNING_RATE not in metrics for name in metrics]
    rows = _rows(points)
    times = np.array([row.time for row in rows], np.float64)
    columns = {
        "step": np.array([row.step for row in rows], np.int64),
        "tokens": np.array([row.tokens for row in rows], np.int64),
        "seconds": times - began,
        "time": (times * 1e3).astype("datetime64[ms]"),
    }
    for name in dict.fromkeys([*logged, *(name for row in rows for name in row.metrics)]):
        own = f"{name} (metric)" if name in FIXED else name  # a loss may have called one so
        columns[own] = np.array([row.metrics.get(name, np.nan) for row in rows], np.float64)
    return columns


@dataclass(slots=True)
class _Row:
    step: int
    tokens: int
    time: float
    metrics: dict[str, float] = field(default_factory=dict)


def _rows(points: Iterable[LogPoint]) -> list[_Row]:
    """Points of one step share a row, as long as no metric is in two of them."""
    rows: list[_Row] = []
    newest: dict[int, _Row] = {}  # by step
    for step, tokens, time, metrics in points:
        row = newest.get(step)
        if row is None or row.metrics.keys() & metrics.keys():
            row = newest[step] = _Row(step, tokens, time)
            rows.append(row)
        elif LEARNING_RATE in metrics:  # the step itself, after what was logged for it in advance
            row.tokens, row.time = tokens, time
        row.metrics.update(metrics)
    return rows


def as_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """A user's metrics as plain numbers. Raises TxlabError for what is none, and for names that are taken."""
    if not metrics:
        raise TxlabError('There is nothing to log: name the figures, as in lab.log("pirate", 12, reward=0.3).')
    for name in metrics:
        if name in FIXED or name in OWN_CURVES:
            raise TxlabError(f"{name} is what the lab itself keeps of every step: call your own figure something else.")
        if not 0 < len(name) <= MAX_NAME:
            raise TxlabError(f"A metric's name has 1 to {MAX_NAME} characters; this one has {len(name)}.")
    return {name: as_number(name, value) for name, value in metrics.items()}


def as_number(name: str, value: Any) -> float:
    """A scalar of Python, NumPy, JAX or torch. Raises TxlabError for anything else."""
    if not isinstance(value, str | bytes) and getattr(value, "ndim", 0) == 0:
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TxlabError(f"{name} is {shortly(value)}: log a number.")


def as_step(step: Any, name: str = "step") -> int:
    """An optimizer step, or so many of them. Raises TxlabError where it is no whole number from 0 on."""
    try:
        if 0 <= operator.index(step) < MAX_STEP:
            return operator.index(step)
    except TypeError:
        pass
    raise TxlabError(f"{name} is {shortly(step)}: it must be a whole number from 0 on.")
