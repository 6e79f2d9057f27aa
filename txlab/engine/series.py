"""A curve of bounded length that keeps its extremes."""

from __future__ import annotations

import numpy as np

COLUMNS = ("step", "tokens", "seconds", "value")  # of a point
BLOCK = 4  # points of which two stay when a series is thinned


class Series:
    """Points in order of arrival, at most ``limit`` of them: a full series keeps of every four the lowest and highest.

    So no peak and no trough is ever lost; the first and the newest point stay too.
    """

    def __init__(self, limit: int = 4096):
        """``limit`` is a multiple of four."""
        self._rows = np.empty((limit, len(COLUMNS)))
        self._count = 0

    def append(self, step: float, tokens: float, seconds: float, value: float) -> None:
        """One more point, at so many optimizer steps, trained tokens and seconds."""
        if self._count == len(self._rows):
            kept = thinned(self._rows)
            self._rows = np.empty_like(self._rows)  # views of the old array stay as they are
            self._count = len(kept)
            self._rows[: self._count] = kept
        self._rows[self._count] = step, tokens, seconds, value
        self._count += 1

    def cut(self, step: float) -> None:
        """Forget what came after an optimizer step."""
        kept = self._rows[: self._count][self.points[:, 0] <= step]
        self._rows = np.empty_like(self._rows)
        self._rows[: len(kept)] = kept
        self._count = len(kept)

    @property
    def points(self) -> np.ndarray:
        """(n, 4) float64 in the order of COLUMNS. It never changes: what comes later lies behind it."""
        points = self._rows[: self._count]
        points.flags.writeable = False
        return points


def thinned(rows: np.ndarray) -> np.ndarray:
    """Half of (n, 4) points, n a multiple of four: the extremes of every block, with the first and the last point."""
    values = rows[:, -1].reshape(-1, BLOCK)
    starts = np.arange(0, len(rows), BLOCK)
    lowest, highest = starts + values.argmin(axis=1), starts + values.argmax(axis=1)
    keep = np.unique(np.concatenate([[0], lowest, highest, [len(rows) - 1]]))
    return rows[keep]
