"""Every moment of a span given to the operations that had it, so that their times and the gaps add up to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol


class Interval(Protocol):
    """Of one operation, in seconds: it has a thread from start to stop, and is in flight from stop to end."""

    @property
    def start(self) -> float: ...
    @property
    def stop(self) -> float: ...
    @property
    def end(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Attribution:
    """How a span was spent, in seconds. ``sum(seconds) + sum(gaps)`` is its length."""

    seconds: Sequence[float]  # of each interval, in their order
    gaps: Sequence[float]  # lengths of the stretches in which nothing ran, in order


def attribute(intervals: Sequence[Interval], start: float, end: float) -> Attribution:
    """Divide the time from ``start`` to ``end`` among ``intervals``.

    A moment belongs, in equal parts, to the operations that have a thread; where none has, to those in flight, whose
    rest the thread pool computes; where there are none either, it is part of a gap. Thread-seconds would not add up
    to anything: one operation runs on many threads and shows on one.
    """
    seconds = [0.0] * len(intervals)
    gaps = []
    running: set[int] = set()
    in_flight: set[int] = set()
    edges = []
    for index, interval in enumerate(intervals):
        edges.append((interval.start, running.add, index))
        edges.append((interval.stop, running.discard, index))
        edges.append((interval.stop, in_flight.add, index))
        edges.append((interval.end, in_flight.discard, index))
    edges.sort(key=itemgetter(0))  # stable: what starts and stops at once comes to nothing
    at = start
    for moment, change, index in [*edges, (end, running.discard, -1)]:
        moment = min(max(moment, start), end)
        if moment > at:
            owners = running or in_flight
            for owner in owners:
                seconds[owner] += (moment - at) / len(owners)
            if not owners:
                gaps.append(moment - at)
            at = moment
        change(index)
    return Attribution(seconds, gaps)
