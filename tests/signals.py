"""Signals of the children that tests start. A child inherits what its parent ignores, as a script's background does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def default_signals(*, ignored: tuple[int, ...] = ()) -> Iterator[None]:
    """While open, children start with the signals that end a program at their defaults, but for ``ignored`` ones."""
    before = {}
    for number in ENDING:
        now = signal.getsignal(number)
        wanted = signal.SIG_IGN if number in ignored else signal.SIG_DFL if now is signal.SIG_IGN else now
        before[number] = signal.signal(number, wanted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
