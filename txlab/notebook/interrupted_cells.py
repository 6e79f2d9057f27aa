"""A cell was interrupted: what it had sent to the lab goes on, and the user is told so."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Iterable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any

from txlab.engine.requests import UnsteppedPasses
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

log = logging.getLogger(__name__)

_INTERRUPTS = (KeyboardInterrupt, asyncio.CancelledError)  # of a cell that computes or waits, and of one that awaits
_watches: dict[int, _Watch] = {}  # by id of the shell


def install(shell: InteractiveShell) -> None:
    """Watch the cells of ``shell``; a second call does nothing."""
    uninstall(shell)
    watch = _watches[id(shell)] = _Watch()
    shell.events.register("pre_run_cell", watch.begin)
    shell.events.register("post_run_cell", watch.end)


def uninstall(shell: InteractiveShell) -> None:
    """Watch the cells of ``shell`` no more."""
    watch = _watches.pop(id(shell), None)
    if watch is not None:
        shell.events.unregister("pre_run_cell", watch.begin)
        shell.events.unregister("post_run_cell", watch.end)


class _Watch:
    """Knows when the present cell began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def begin(self, _info: Any) -> None:
        self._began = time.monotonic()

    def end(self, result: Any) -> None:
        if Lab.current is None or not isinstance(getattr(result, "error_in_exec", None), _INTERRUPTS):
            return
        try:
            line = describe(Lab.current.note_interrupt(_sessions(), self._began))
        except (TxlabError, FutureTimeoutError):  # the lab stops, or its device is busy for long: the marks come later
            return
        except Exception:
            log.exception("what goes on after an interrupt could not be told")
            return
        if line:
            print(line)


def describe(runs: Iterable[UnsteppedPasses]) -> str:
    """One line on the requests that go on, and how to end them; empty where none does."""
    told = [_run(run) for run in runs]
    return f"txlab: interrupted, but what was sent before goes on: {'; '.join(told)}." if told else ""


def _run(run: UnsteppedPasses) -> str:
    count = run.under_way + run.accumulated
    passes = f"{count} forward_backward of {run.name!r}" + (f" ({run.under_way} waiting)" if run.under_way else "")
    then = "with the optim_step behind" if run.step_waits else "whose gradients enter its next optim_step"
    return f"{passes}, {then} (lab.stop_run({run.name!r}) ends that)"


def _sessions() -> frozenset[str]:
    """The sessions of all of the SDK's clients in this process."""
    module = sys.modules.get("tinker.lib.internal_client_holder")
    holder = getattr(module, "InternalClientHolder", None)
    if holder is None:
        return frozenset()
    found = [_session(one) for one in gc.get_objects() if type(one) is holder]
    return frozenset(session for session in found if session is not None)


def _session(holder: Any) -> str | None:
    """The session of a client; None where it has none, as tinker.RestClient."""
    try:
        session: str | None = holder.get_session_id()
    except AssertionError:
        return None
    return session
