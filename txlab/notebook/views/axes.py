"""Axes: ranges, ticks and what is written at them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from txlab.notebook.views.frame import XKind

LOG_RATIO = 30.0  # of the largest to the smallest value, from which on a log axis shows more
SLACK = 0.4  # of a step between ticks that an axis may go beyond its values
_MINUTE, _HOUR = 60.0, 3600.0
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


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


def x_axis(kind: XKind, first: float, last: float) -> Axis:
    """From 0, or where the curves start late from a tick before that, to the last point."""
    last = max(last, 1.0)
    low = first if 0.5 * last < first < last else 0.0
    step = _time_step(last - low) if kind == "time" else max(1.0, _nice_step(max(last - low, 1.0), 8))
    low = math.floor(low / step) * step
    high = max(last, low + 1.0)
    return Axis(low, high, tuple(float(t) for t in np.arange(low, high + step * 1e-6, step)))


def value_axis(values: np.ndarray, log: bool | None = None) -> Axis:
    """An axis around finite ``values`` (n,), at least one of them.

    It is logarithmic where all are positive and they span LOG_RATIO or more; ``log`` True asks for that wherever
    they are positive, False for a linear axis.
    """
    low, high = float(values.min()), float(values.max())
    if log is not False and low > 0 and (log or high / low >= LOG_RATIO):
        return _log_axis(low, high)
    if high - low < 1e-9 * max(abs(high), 1e-9):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    elif 0 < low < 0.4 * high:
        low = 0.0
    step = _nice_step(high - low, 5)
    first, last, margin = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9), 0.05 * (high - low)
    bottom = low - margin if low - first * step > SLACK * step else first * step
    top = high + margin if last * step - high > SLACK * step else last * step
    return Axis(bottom, top, tuple(i * step for i in range(first, last + 1) if bottom <= i * step <= top))


def _log_axis(low: float, high: float) -> Axis:
    """From 1, 2 or 5 times a decade to another, with ticks at decades; at each such number where decades are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [digit * 10.0**e for e in range(first, last + 1) for digit in (1.0, 2.0, 5.0)]
    low = max((mark for mark in marks if mark <= low), default=low)
    high = min((mark for mark in marks if mark >= high), default=high)
    if high <= low * (1 + 1e-9):  # a single value that is a mark itself
        low, high = low / 2, high * 2
    stride = max(1, math.ceil((last - first) / 6))
    ticks = marks if last - first <= 2 else [10.0**e for e in range(first, last + 1, stride)]
    return Axis(low, high, tuple(tick for tick in ticks if low <= tick <= high), log=True)


def _nice_step(span: float, count: int) -> float:
    """1, 2 or 5 times a power of ten, so that ``span`` has at most about ``count`` steps."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next((m * power for m in (1.0, 2.0, 5.0) if span / (m * power) <= count), 10.0 * power)


def _time_step(span: float) -> float:
    days = _TIME_STEPS[-1] * max(1.0, _nice_step(max(span / _TIME_STEPS[-1], 1e-9), 8))
    return next((float(step) for step in _TIME_STEPS if span / step <= 8), days)


def value_label(value: float) -> str:
    """What is written at a tick of the values."""
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return f"{value:.4g}"
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}e{int(exponent)}"


def x_label(kind: XKind, value: float) -> str:
    """What is written at a tick of x: steps in full, tokens as 250k, time as 1:23 or 2 h."""
    if kind == "time":
        return duration(value)
    return count(value) if kind == "tokens" else f"{value:,.0f}"


def count(value: float) -> str:
    """A large number in thousands, millions or billions."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Below an hour as 1:23, from then on as 2 h or 2 h 30."""
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)}:{int(seconds % _MINUTE):02d}"
    hours, minutes = int(seconds // _HOUR), int(seconds % _HOUR // _MINUTE)
    return f"{hours} h {minutes:02d}" if minutes else f"{hours} h"
