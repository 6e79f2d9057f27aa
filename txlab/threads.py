"""Threads that neither keep the process alive nor stop at a breakpoint of the notebook's debugger."""

from __future__ import annotations

import threading
from collections.abc import Callable


def daemon_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """A thread, not yet started, that debugpy leaves running while a cell sits at a breakpoint."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    hide_from_debugger(thread)
    return thread


def hide_from_debugger(thread: threading.Thread) -> None:
    """Keep ``thread`` running while the debugger holds the others."""
    thread.pydev_do_not_trace = True  # type: ignore[attr-defined]
    thread.is_pydev_daemon_thread = True  # type: ignore[attr-defined]
