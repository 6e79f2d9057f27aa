"""Work on threads of its own: in order where it concerns the same thing, side by side where it does not."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable

from txlab.threads import daemon_thread


class Lanes:
    """Calls wait for earlier ones of their lane only. A lane has a thread as long as it has work."""

    def __init__(self, name: str):
        """``name`` is that of the threads."""
        self._name = name
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}

    def put(self, lane: Hashable, call: Callable[[], None]) -> None:
        """Run ``call``, which must not raise, soon. Never blocks."""
        with self._lock:
            if lane in self._waiting:
                self._waiting[lane].append(call)
                return
            self._waiting[lane] = deque([call])
        daemon_thread(lambda: self._work(lane), self._name).start()

    def _work(self, lane: Hashable) -> None:
        while True:
            with self._lock:
                if not self._waiting[lane]:
                    del self._waiting[lane]
                    return
                call = self._waiting[lane].popleft()
            call()
