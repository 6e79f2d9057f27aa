"""Interrupts (SIGINT) that wait until they do no harm.

KeyboardInterrupt in the middle of an import leaves half a module behind, and every later import of it in this process
fails. So while a lab starts, an interrupt is noted and raised at the next point where all can be undone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Interrupts:
    """A handler of SIGINT that raises KeyboardInterrupt only where it is allowed, and once."""

    def __init__(self, notice: Callable[[], str]):
        self.notice = notice  # printed when an interrupt has to wait
        self._allowed = False
        self._noted = False
        self._told = False

    def __call__(self, number: int, frame: object) -> None:
        """Handle the signal."""
        if self._allowed:
            self._allowed = False  # a second one must not cut what the first one began
            raise KeyboardInterrupt
        self._noted = True
        if not self._told:
            self._told = True
            with suppress(RuntimeError):  # the interrupt came in the middle of another print
                print(self.notice(), flush=True)

    def check(self) -> None:
        """Raise KeyboardInterrupt where one was noted."""
        if self._noted:
            self._noted = False
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """While open, an interrupt is raised at once: for what only reads, waits or is undone by its own means."""
        try:
            self._allowed = True
            self.check()
            yield
        finally:
            self._allowed = False


@contextmanager
def interrupts_held(notice: Callable[[], str]) -> Iterator[Interrupts]:
    """While open, interrupts of the main thread wait, at most until the end; ``notice()`` tells the user, once.

    Inside of another one it is that one. Where interrupts are ignored they stay so.
    """
    before = signal.getsignal(signal.SIGINT)
    if isinstance(before, Interrupts):
        yield before
        return
    interrupts = Interrupts(notice)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
    interrupts.check()
