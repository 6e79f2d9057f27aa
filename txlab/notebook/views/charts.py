"""Charts of curves as SVG. Pure functions of the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from txlab.engine.adapter_history import LOSS, OWN_CURVES, AdapterView
from txlab.notebook.views.axes import Axis, value_axis, value_label, x_axis, x_label
from txlab.notebook.views.curves import Curve, adapter_curves, smooth, thin
from txlab.notebook.views.frame import Frame, XKind
from txlab.notebook.views.remember import remembered
from txlab.notebook.views.text import number

MAX_LABELLED = 8  # curves with a value at their end; more would not be told apart
LABEL_MARGIN = 58  # px that these take
LABEL_GAP = 14.0  # px between labels at the ends of the curves
MAX_POINTS = 12_000  # of all curves of a chart together: many curves share the columns' width
SPARK_COLUMNS = 16
FINE = 10  # curves are drawn in tenths of a px, which are whole numbers, and so short
X_TITLES: dict[XKind, str] = {"step": "step", "tokens": "trained tokens", "time": "time"}
_METRIC_TITLES = {LOSS: "loss per token", "grad_norm": "gradient norm", "learning_rate": "learning rate"}


@dataclass(frozen=True, slots=True)
class Box:
    """Where a chart's axes are, in px."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class ChartOptions:
    """How curves are drawn. ``log`` None: a log axis where it shows more; ``labels``: a value at the end of each."""

    title: str = "loss per token"
    x: XKind = "step"
    smoothing: float = 0.0  # see ``curves.smooth``; the curve itself stays, faint
    log: bool | None = None
    labels: bool = True
    empty: str = "The curves start with the first optim_step"


def board_chart(frame: Frame, space: Box) -> list[str]:
    """SVG elements of the chart that the options of ``frame`` ask for, with all around it within ``space``."""
    chosen, curves = frame.options, adapter_curves(frame.view.adapters, frame.options)
    options = ChartOptions(
        title=metric_title(chosen.metric),
        x=chosen.x,
        smoothing=chosen.smoothing,
        log=chosen.log,
        labels=0 < len(curves) <= MAX_LABELLED,
        empty=_hint(frame),
    )
    right = LABEL_MARGIN if options.labels else 16
    box = Box(space.left + 46, space.top + 24, space.width - 46 - right, space.height - 24 - 38)
    return draw_chart(curves, box, options)


def _hint(frame: Frame) -> str:
    """What to do for a curve where there is none."""
    metric, there = frame.options.metric, [a for a in frame.view.adapters if frame.options.metric in a.curves]
    if there:
        return "All curves are hidden: show one with the mark before an adapter's name"
    if metric in OWN_CURVES:
        return "The curves start with the first optim_step"
    return f"No adapter has {metric} yet: lab.log(adapter, {metric}=...)"


def metric_title(metric: str) -> str:
    """What a metric is called above its chart."""
    return _METRIC_TITLES.get(metric, metric)


def draw_chart(curves: Sequence[Curve], box: Box, options: ChartOptions | None = None) -> list[str]:
    """SVG elements of a chart: grid, curves, and a label at the end of each if the options ask for that.

    Above ``box`` it takes 24 px, below 36, at its left 52, and at its right 60 where there are labels.
    """
    options = options or ChartOptions()
    filled = [c for c in (_positive(curves) if options.log else curves) if len(c.points)]
    if not filled:
        x, y = box.left + box.width / 2, box.top + box.height / 2
        return [f'<text class="mute mid" x="{x:g}" y="{y:g}">{escape(options.empty)}</text>']
    lines = [_smoothed(c, options.smoothing) for c in filled] if options.smoothing else filled
    faint = filled if options.smoothing else []
    across = x_axis(options.x, min(c.points[0, 0] for c in filled), max(c.points[-1, 0] for c in filled))
    up = value_axis(np.concatenate([c.points[:, 1] for c in filled]), options.log)
    column = max(1.0, 4 * box.width * len([*faint, *lines]) / MAX_POINTS)
    many = ' class="many"' if len(filled) > MAX_LABELLED else ""
    return [
        *_grid(across, up, box, options),
        f'<g{many} transform="scale({1 / FINE:g})">',
        *(_line(c, across, up, box, column, "faint") for c in faint),
        *(_line(c, across, up, box, column) for c in lines),
        "</g>",
        *(_end_labels(lines, across, up, box) if options.labels else ()),
    ]


def _positive(curves: Sequence[Curve]) -> list[Curve]:
    """What a log axis can show of them; all as it is where that is nothing."""
    kept = [_above_zero(c) for c in curves]
    return kept if any(len(c.points) for c in kept) else list(curves)


@remembered
def _above_zero(c: Curve) -> Curve:
    return Curve(c.name, c.color, c.points[c.points[:, 1] > 0])


@remembered
def _smoothed(c: Curve, factor: float) -> Curve:
    return Curve(c.name, c.color, np.column_stack([c.points[:, 0], smooth(c.points[:, 1], factor)]))


def _grid(x: Axis, y: Axis, box: Box, options: ChartOptions) -> list[str]:
    bottom, right = box.top + box.height, box.left + box.width
    parts = []
    for tick, at in zip(y.ticks, y.place(np.array(y.ticks)), strict=True):
        height = bottom - at * box.height
        parts.append(f'<path class="grid" d="M{box.left:g} {height:.1f}H{right:g}"/>')
        parts.append(f'<text class="tick end" x="{box.left - 8:g}" y="{height + 4:.1f}">{value_label(tick)}</text>')
    for tick, at in zip(x.ticks, x.place(np.array(x.ticks)), strict=True):
        across = box.left + at * box.width
        parts.append(f'<text class="tick mid" x="{across:.1f}" y="{bottom + 17:g}">{x_label(options.x, tick)}</text>')
    parts.append(f'<path class="axis" d="M{box.left:g} {bottom:g}H{right:g}"/>')
    title = escape(options.title) + (", log scale" if y.log else "")
    parts.append(f'<text class="small mute" x="{box.left:g}" y="{box.top - 11:g}">{title}</text>')
    parts.append(f'<text class="small mute end" x="{right:g}" y="{bottom + 33:g}">{X_TITLES[options.x]}</text>')
    return parts


# -------------------------------------------------------------------------------------- lines


@remembered
def _line(c: Curve, x: Axis, y: Axis, box: Box, column: float, css: str = "") -> str:
    pixels = _pixels(c.points, x, y, box)
    title = "" if css else f"<title>{escape(c.name)}</title>"
    if len(pixels) == 1:
        (across, height) = np.rint(pixels[0] * FINE).tolist()
        return f'<circle class="{c.color} dot" cx="{across:.0f}" cy="{height:.0f}" r="{3 * FINE}">{title}</circle>'
    return f'<path class="{f"{c.color} line {css}".strip()}" d="{line_path(thin(pixels, column), FINE)}">{title}</path>'


def line_path(pixels: np.ndarray, fine: int = 1) -> str:
    """The ``d`` of a line through (n, 2) ``pixels``, in whole ``fine``-ths of a px."""
    corners = np.rint(pixels * fine).astype(np.int64)
    steps = np.diff(corners, axis=0)
    (left, top), moves = corners[0].tolist(), " ".join(map(str, steps[steps.any(axis=1)].ravel().tolist()))
    return f"M{left} {top}l{moves.replace(' -', '-') or '0 0'}"


def _pixels(points: np.ndarray, x: Axis, y: Axis, box: Box) -> np.ndarray:
    across = box.left + x.place(points[:, 0]) * box.width
    down = box.top + (1.0 - y.place(points[:, 1])) * box.height
    return np.stack([across, down], axis=1)  # (n, 2)


def _end_labels(curves: Sequence[Curve], x: Axis, y: Axis, box: Box) -> list[str]:
    """The last value of each curve beside its end, moved apart where they would overlap."""
    ends = sorted(((c, _pixels(c.points[-1:], x, y, box)[0, 1]) for c in curves), key=lambda end: end[1])
    heights = spread([height for _, height in ends], LABEL_GAP, box.top, box.top + box.height)
    right = box.left + box.width + 8
    return [
        f'<text class="{c.color} label" x="{right:g}" y="{height + 4:.1f}"><title>{escape(c.name)}</title>'
        f"{number(float(c.points[-1, 1]))}</text>"
        for (c, _), height in zip(ends, heights, strict=True)
    ]


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted ``heights`` moved as little as a two-way sweep can, at least ``gap`` apart and within ``low..high``."""
    placed = list(heights)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    limit = high
    for i in reversed(range(len(placed))):
        placed[i] = max(min(placed[i], limit), low)
        limit = placed[i] - gap
    return placed


def loss_spark(adapter: AdapterView, width: int, height: int) -> str:
    """The ``d`` of an adapter's loss as a line that fills ``width`` times ``height`` px; empty below two points."""
    values = adapter.curves[LOSS][:, -1] if LOSS in adapter.curves else np.empty(0)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return ""
    low, high = float(values.min()), float(values.max())
    across = np.linspace(0.0, width, len(values))
    down = (high - values) / (high - low) * height if high > low else np.full(len(values), height / 2)
    return line_path(thin(np.column_stack([across, down]), (width + 1) / SPARK_COLUMNS))
