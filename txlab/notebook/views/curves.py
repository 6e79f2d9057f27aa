"""Curves as data: which points of which adapters, smoothed, and thinned without losing what can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from txlab.engine.bus import AdapterView
from txlab.notebook.views.frame import BoardOptions, XKind
from txlab.notebook.views.remember import remembered
from txlab.notebook.views.style import curve_class

X_COLUMNS: dict[XKind, int] = {"step": 0, "tokens": 1, "time": 2}  # of a series
_NOTHING_LEFT = 1e-18  # weight of the past that changes no float


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Curve:
    """A named line; ``color`` is the CSS class of its stroke."""

    name: str
    color: str
    points: np.ndarray  # (n, 2) float64, in order of x


def curve(name: str, color: str, points: np.ndarray) -> Curve:
    """A curve of the finite points among ``points``."""
    array = np.asarray(points, np.float64).reshape(-1, 2)
    return Curve(name, color, array[np.isfinite(array).all(axis=1)])


def adapter_colors(adapters: Sequence[AdapterView]) -> dict[str, str]:
    """CSS class of each adapter's curve by its model id, in order of creation."""
    return {adapter.model_id: curve_class(i) for i, adapter in enumerate(adapters)}


def adapter_curves(adapters: Sequence[AdapterView], options: BoardOptions) -> list[Curve]:
    """The curve that ``options`` ask for, of each adapter that is not hidden and has it."""
    colors = adapter_colors(adapters)
    return [
        _adapter_curve(adapter, colors[adapter.model_id], options.metric, options.x)
        for adapter in adapters
        if options.metric in adapter.curves and adapter.model_id not in options.hidden
    ]


@remembered
def _adapter_curve(adapter: AdapterView, color: str, metric: str, x: XKind) -> Curve:
    return curve(adapter.name or adapter.model_id, color, adapter.curves[metric][:, [X_COLUMNS[x], 3]])


def smooth(values: np.ndarray, factor: float) -> np.ndarray:
    """Exponential moving average of (n,) values, (n,) float64, not biased towards zero at the start.

    Each is the mean of all before it, with weights that fall by ``factor`` (0 <= factor < 1) per value.
    """
    total = np.asarray(values, np.float64) * (1.0 - factor)
    shift, decay = 1, factor
    while shift < len(total) and decay > _NOTHING_LEFT:  # each round doubles how far back the sums reach
        total[shift:] += decay * total[:-shift]
        shift, decay = 2 * shift, decay * decay
    return total / (1.0 - factor ** np.arange(1.0, len(total) + 1.0))


def thin(pixels: np.ndarray, width: float = 1.0) -> np.ndarray:
    """Of each column of ``width`` px keep the first, lowest, highest and last of (n, 2) ``pixels``, in order of x.

    Nothing that can be seen is lost, no peak and no trough.
    """
    if len(pixels) == 0:
        return pixels
    columns = np.floor(pixels[:, 0] / width).astype(np.int64)
    starts = np.flatnonzero(np.diff(columns, prepend=columns[0] - 1))
    if len(starts) * 4 >= len(pixels):
        return pixels
    ends, y = np.append(starts[1:], len(pixels)), pixels[:, 1]
    keep = [starts, ends - 1, _where(np.minimum, y, starts, ends), _where(np.maximum, y, starts, ends)]
    return pixels[np.unique(np.concatenate(keep))]


def _where(extreme: np.ufunc, y: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Where in ``y`` (n,) the first extreme of each run ``starts[i]:ends[i]`` is, (runs,) int64."""
    counts = ends - starts
    found = np.flatnonzero(y == np.repeat(extreme.reduceat(y, starts), counts))
    return found[np.searchsorted(found, starts)]
