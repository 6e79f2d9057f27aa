"""Adapters by the names that people give them. The one place where a name becomes an adapter."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from datetime import datetime

from txlab.engine.bus import AdapterView
from txlab.notebook.errors import TxlabError, shortly

PACKAGE = __name__.partition(".")[0]


def find_adapter(adapters: Sequence[AdapterView], name: str) -> AdapterView:
    """The one of that run id, else the only one of that name. Raises TxlabError, which lists those that there are."""
    found = namesakes(adapters, name)
    if len(found) > 1:
        raise TxlabError(f"{_which(found, name)} Say which one by its run id, a client's is client.model_id.")
    return found[0]


def find_newest(adapters: Sequence[AdapterView], name: str) -> AdapterView:
    """The one of that run id, else the newest of that name; where there are several, a warning says so.

    For calls that change nothing. Raises TxlabError where there is none.
    """
    found = namesakes(adapters, name)
    if len(found) > 1:
        warn(f"{_which(found, name)} This is the newest; a run id names any of them.")
    return found[0]


def namesakes(adapters: Sequence[AdapterView], name: str) -> list[AdapterView]:
    """The one of that run id, else all of that name, newest first. Raises TxlabError where there is none."""
    there = alive(adapters)
    found = [one for one in there if one.model_id == name] or [one for one in there if one.name == name]
    if not found:
        names = ", ".join(dict.fromkeys(shortly(one.name or one.model_id) for one in there)) or "none yet"
        raise TxlabError(f"There is no adapter {shortly(name)}: give a name or a run id. Adapters: {names}.")
    return found[::-1]


def holder(adapters: Sequence[AdapterView], name: str) -> AdapterView | None:
    """The adapter that ``name`` already stands for; the newest where there are several."""
    return next((one for one in reversed(alive(adapters)) if name in (one.name, one.model_id)), None)


def alive(adapters: Sequence[AdapterView]) -> list[AdapterView]:
    """Those that were not unloaded, in order of creation."""
    return [one for one in adapters if one.state != "unloaded"]


def warn(message: str) -> None:
    """Warn at the user's own line, each time that it runs."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame = frame.f_back
    warnings.warn_explicit(message, UserWarning, frame.f_code.co_filename, frame.f_lineno)


def _which(found: Sequence[AdapterView], name: str) -> str:
    return f"{len(found)} adapters are called {shortly(name)}: {'; '.join(map(_told_apart, found))}."


def _told_apart(one: AdapterView) -> str:
    """Run id, step, state and time of creation: they tell namesakes apart."""
    return f"{one.model_id} (step {one.step:,}, {one.state}, made at {datetime.fromtimestamp(one.created):%H:%M:%S})"
