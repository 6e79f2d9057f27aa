"""Who gets the device next where training and sampling both have work. Pure Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Shares:
    """Device time in proportion to weights, by virtual time: who has had least for its weight comes next.

    Work is not interrupted. Who had nothing to do is not owed for that time; but who comes while another works is owed
    what that work takes, and so may catch up at once: a short request that comes alone waits for that piece only.
    """

    def __init__(self, weights: Mapping[str, float], clock: Callable[[], float] = time.monotonic):
        if min(weights.values()) <= 0:
            raise ValueError(f"every share of the device must be greater than 0, and they are {dict(weights)}")
        self._weights = weights
        self._clock = clock
        self._used = dict.fromkeys(weights, 0.0)  # seconds over weight
        self.busy_seconds = 0.0

    def next(self, ready: Mapping[str, bool]) -> str | None:
        """Who of those with work comes next. Who has none is brought up to the least of the others."""
        waiting = [name for name, is_ready in ready.items() if is_ready]
        if waiting:
            least = min(self._used[name] for name in waiting)
            for name in self._used:
                if name not in waiting:
                    self._used[name] = max(self._used[name], least)
        return min(waiting, key=lambda name: self._used[name], default=None)

    @contextmanager
    def spend(self, name: str) -> Iterator[None]:
        """Count what the body takes."""
        began = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - began
            self._used[name] += seconds / self._weights[name]
            self.busy_seconds += seconds
