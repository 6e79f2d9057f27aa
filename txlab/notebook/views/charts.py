"""Curves as SVG: scales, ticks, downsampling. Pure functions of the points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from txlab.notebook.views.text import number

LOG_RATIO = 30.0  # of the largest to the smallest value, from which on a log axis shows more
LABEL_GAP = 14.0  # px between labels at the ends of the curves


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line; ``color`` is the CSS class of its stroke."""

    name: str
    color: str
    points: np.ndarray  # (n, 2) float64, in order of x


@dataclass(frozen=True, slots=True)
class Box:
    """Where a chart's axes are, in px."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values ``low..high`` to 0..1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Values as fractions of the axis."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        return ((np.log10(values) if self.log else values) - low) / (high - low)


def curve(name: str, color: str, points: np.ndarray) -> Curve:
    """A curve of the finite points among ``points``."""
    array = np.asarray(points, np.float64).reshape(-1, 2)
    return Curve(name, color, array[np.isfinite(array).all(axis=1)])


def draw_chart(curves: Sequence[Curve], box: Box, labels: bool) -> list[str]:
    """SVG elements of a chart of ``curves``, with a label at the end of each if ``labels``."""
    filled = [c for c in curves if len(c.points)]
    if not filled:
        x, y = box.left + box.width / 2, box.top + box.height / 2
        return [f'<text class="mute mid" x="{x:g}" y="{y:g}">The curves start with the first optim_step</text>']
    x_axis = step_axis(max(c.points[-1, 0] for c in filled))
    y_axis = value_axis(np.concatenate([c.points[:, 1] for c in filled]))
    parts = _grid(x_axis, y_axis, box)
    parts += [_line(c, x_axis, y_axis, box) for c in filled]
    return parts + (_end_labels(filled, x_axis, y_axis, box) if labels else [])


# -------------------------------------------------------------------------------------- axes


def step_axis(last: float) -> Axis:
    """From step 0 to the last one, with ticks at whole steps."""
    high = max(last, 1.0)
    step = max(1.0, _nice_step(high, 8))
    return Axis(0.0, high, tuple(float(t) for t in np.arange(0.0, high + step * 1e-6, step)))


def value_axis(values: np.ndarray) -> Axis:
    """An axis around finite ``values`` (n,): logarithmic where all are positive and they span LOG_RATIO or more."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low >= LOG_RATIO:
        return _log_axis(low, high)
    if high - low < 1e-9 * max(abs(high), 1e-9):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    elif 0 < low < 0.4 * high:
        low = 0.0
    step = _nice_step(high - low, 5)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Axis(low, high, tuple(low + i * step for i in range(round((high - low) / step) + 1)))


def _log_axis(low: float, high: float) -> Axis:
    """From 1, 2 or 5 times a decade to another, with ticks at decades; at each such number where decades are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [digit * 10.0**e for e in range(first, last + 1) for digit in (1.0, 2.0, 5.0)]
    low = max((mark for mark in marks if mark <= low), default=low)
    high = min((mark for mark in marks if mark >= high), default=high)
    stride = max(1, math.ceil((last - first) / 6))
    ticks = marks if last - first <= 2 else [10.0**e for e in range(first, last + 1, stride)]
    return Axis(low, high, tuple(tick for tick in ticks if low <= tick <= high), log=True)


def _nice_step(span: float, count: int) -> float:
    """1, 2 or 5 times a power of ten, so that ``span`` has at most about ``count`` steps."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next((m * power for m in (1.0, 2.0, 5.0) if span / (m * power) <= count), 10.0 * power)


def _grid(x_axis: Axis, y_axis: Axis, box: Box) -> list[str]:
    bottom, right = box.top + box.height, box.left + box.width
    parts = []
    for tick, at in zip(y_axis.ticks, y_axis.place(np.array(y_axis.ticks)), strict=True):
        y = bottom - at * box.height
        parts.append(f'<path class="grid" d="M{box.left:g} {y:.1f}H{right:g}"/>')
        parts.append(f'<text class="tick end" x="{box.left - 8:g}" y="{y + 4:.1f}">{_tick(tick)}</text>')
    for tick, at in zip(x_axis.ticks, x_axis.place(np.array(x_axis.ticks)), strict=True):
        x = box.left + at * box.width
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 17:g}">{tick:,.0f}</text>')
    parts.append(f'<path class="axis" d="M{box.left:g} {bottom:g}H{right:g}"/>')
    scale = "loss per token, log scale" if y_axis.log else "loss per token"
    parts.append(f'<text class="mute" x="{box.left:g}" y="{box.top - 12:g}">{scale}</text>')
    parts.append(f'<text class="mute end" x="{right:g}" y="{bottom + 33:g}">step</text>')
    return parts


def _tick(value: float) -> str:
    return f"{value:.4g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.0e}"


# -------------------------------------------------------------------------------------- lines


def _line(c: Curve, x_axis: Axis, y_axis: Axis, box: Box) -> str:
    pixels = _pixels(c.points, x_axis, y_axis, box)
    if len(pixels) == 1:
        (x, y) = pixels[0]
        return f'<circle class="{c.color} dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in thin(pixels).tolist())
    return f'<polyline class="{c.color} line" points="{path}"><title>{escape(c.name)}</title></polyline>'


def _pixels(points: np.ndarray, x_axis: Axis, y_axis: Axis, box: Box) -> np.ndarray:
    x = box.left + x_axis.place(points[:, 0]) * box.width
    y = box.top + (1.0 - y_axis.place(points[:, 1])) * box.height
    return np.stack([x, y], axis=1)  # (n, 2)


def thin(pixels: np.ndarray) -> np.ndarray:
    """Of each px column of (n, 2) ``pixels`` keep the first, lowest, highest and last point: nothing seen is lost."""
    columns = np.floor(pixels[:, 0]).astype(np.int64)
    starts = np.flatnonzero(np.diff(columns, prepend=columns[0] - 1))
    if len(starts) * 4 >= len(pixels):
        return pixels
    ends = np.append(starts[1:], len(pixels))
    y = pixels[:, 1]
    keep = [starts, ends - 1]
    keep += [np.array([s + pick(y[s:e]) for s, e in zip(starts, ends, strict=True)]) for pick in (np.argmin, np.argmax)]
    return pixels[np.unique(np.concatenate(keep))]


def _end_labels(curves: Sequence[Curve], x_axis: Axis, y_axis: Axis, box: Box) -> list[str]:
    """The last value of each curve beside its end, moved apart where they would overlap."""
    ends = [(c, *_pixels(c.points[-1:], x_axis, y_axis, box)[0]) for c in curves]
    ends.sort(key=lambda end: end[2])
    heights = spread([y for _, _, y in ends], LABEL_GAP, box.top, box.top + box.height)
    x = box.left + box.width + 8
    return [
        f'<text class="{c.color} label" x="{x:g}" y="{y + 4:.1f}">{number(float(c.points[-1, 1]))}</text>'
        for (c, _, _), y in zip(ends, heights, strict=True)
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
