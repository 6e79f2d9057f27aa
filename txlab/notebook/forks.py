"""Forks of a serving process: what a child must let go of, and the warning that IPython's ``!`` needs not print.

A forked child has copies of every object and every open socket, but of no thread. Unless told otherwise it keeps the
lab's port taken and its connections open, and would stop the parent's lab when it exits.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_actions: dict[object, Callable[[], None]] = {}


@contextmanager
def in_forked_child(action: Callable[[], None]) -> Iterator[None]:
    """While open, ``action`` is the first thing that a forked child runs. It must neither wait, nor take a lock."""
    key = object()
    _actions[key] = action
    try:
        yield
    finally:
        _actions.pop(key, None)


def let_go(descriptor: int) -> None:
    """Give up this process's copy of a socket. Its number stays taken: the socket's object may close that later."""
    with suppress(OSError):  # closed already
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)


def quiet_shell_commands() -> None:
    """Keep JAX from warning of the fork behind ``!command``, whose child is another program at once.

    Other forks still warn. No effect where IPython does not run; a second call does nothing.
    """
    if "IPython" not in sys.modules or not hasattr(os, "fork"):
        return
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    module = sys.modules[type(shell).system.__module__]
    run = getattr(module, "system", None)  # what `!` calls. The method itself looks for variables in its caller's frame
    if run is None or hasattr(run, "__wrapped__"):
        return

    @functools.wraps(run)
    def system(command: str) -> int:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            return run(command)

    module.system = system  # type: ignore[attr-defined]


def _in_child() -> None:
    actions = [*_actions.values()]
    _actions.clear()
    for action in actions:
        action()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
