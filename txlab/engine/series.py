"""A curve of bounded length that keeps its extremes, and the newest part of a long row of numbers."""

from __future__ import annotations

import numpy as np

COLUMNS = ("step", "tokens", "seconds", "value")  # of a point
BLOCK = 4  # points of which two stay when a series is thinned
FIRST_ROOM = 64  # points of a new series; twice as many whenever it is full, up to its limit


class Series:
    """Points in order of steps, tokens and seconds, at most ``limit``: a full series keeps the extremes of every four.

    So no peak and no trough is ever lost; the first and the newest point stay too. A point of an earlier step than the
    last one is put where it belongs, behind those of the same step.
    """

    def __init__(self, limit: int = 4096):
        """``limit`` is a multiple of four."""
        self._limit = limit
        self._rows = np.empty((min(FIRST_ROOM, limit), len(COLUMNS)))
        self._count = 0

    def append(self, step: float, tokens: float, seconds: float, value: float) -> None:
        """One more point, at so many optimizer steps, trained tokens and seconds; its value may be NaN or infinite."""
        if self._count == len(self._rows):
            self._make_room()
        steps = self.points[:, 0]
        place = self._count if not self._count or steps[-1] <= step else int(np.searchsorted(steps, step, "right"))
        if place < self._count:
            self._move_up(place)
        self._rows[place] = step, tokens, seconds, value
        self._count += 1
        self._put_in_order(place)

    def cut(self, step: float) -> None:
        """Forget what came after an optimizer step."""
        self._replace(self.points[self.points[:, 0] <= step], len(self._rows))

    @property
    def points(self) -> np.ndarray:
        """(n, 4) float64 in the order of COLUMNS. It never changes: what comes later lies behind it, or elsewhere."""
        points = self._rows[: self._count]
        points.flags.writeable = False
        return points

    def _make_room(self) -> None:
        if self._count < self._limit:
            self._replace(self.points, min(2 * self._count, self._limit))
        else:
            self._replace(thinned(self.points), self._limit)

    def _move_up(self, place: int) -> None:
        """Free the row ``place``."""
        after = self.points[place:]
        self._replace(self.points, len(self._rows))
        self._rows[place + 1 : self._count + 1] = after

    def _put_in_order(self, place: int) -> None:
        """Keep the tokens and seconds of a new point between those of its neighbours."""
        middle = self._rows[place, 1:3]
        if place > 0:
            np.maximum(middle, self._rows[place - 1, 1:3], out=middle)
        if place + 1 < self._count:
            np.minimum(middle, self._rows[place + 1, 1:3], out=middle)

    def _replace(self, rows: np.ndarray, room: int) -> None:
        """Hold these points, in an array of their own: views of the old one stay as they are."""
        self._rows = np.empty((room, len(COLUMNS)))
        self._rows[: len(rows)] = rows
        self._count = len(rows)


class Tail:
    """The newest ``limit`` numbers of those that were added, and how many those were."""

    def __init__(self, limit: int, dtype: type):
        self._limit = limit
        self._room: np.ndarray = np.empty(2 * limit, dtype)
        self._end = 0
        self.added = 0

    def extend(self, numbers: np.ndarray) -> None:
        """Add (n,) numbers at the end."""
        self.added += len(numbers)
        numbers = numbers[-self._limit :]
        if self._end + len(numbers) > len(self._room):
            kept = self.numbers
            self._room = np.empty_like(self._room)  # what was handed out stays as it is
            self._room[: len(kept)] = kept
            self._end = len(kept)
        self._room[self._end : self._end + len(numbers)] = numbers
        self._end += len(numbers)

    @property
    def numbers(self) -> np.ndarray:
        """(m,) with m at most ``limit``; it never changes."""
        numbers = self._room[max(0, self._end - self._limit) : self._end]
        numbers.flags.writeable = False
        return numbers


def thinned(rows: np.ndarray) -> np.ndarray:
    """Half of (n, 4) points, n a multiple of four: the extremes of every block, with the first and the last point.

    NaN is no extreme: it stays where a block has nothing else.
    """
    values = rows[:, -1].reshape(-1, BLOCK)
    starts = np.arange(0, len(rows), BLOCK)
    lowest = starts + np.where(np.isnan(values), np.inf, values).argmin(axis=1)
    highest = starts + np.where(np.isnan(values), -np.inf, values).argmax(axis=1)
    keep = np.unique(np.concatenate([[0], lowest, highest, [len(rows) - 1]]))
    return rows[keep]
