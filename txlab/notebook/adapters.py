"""Adapters by the names that people give them."""

from __future__ import annotations

from collections.abc import Sequence

from txlab.engine.bus import AdapterView
from txlab.notebook.errors import TxlabError, shortly


def find_adapter(adapters: Sequence[AdapterView], name: str) -> AdapterView:
    """The one of that run id, else the newest of that name. Raises TxlabError, which lists those that there are."""
    there = [one for one in adapters if one.state != "unloaded"]
    found = [one for one in there if one.model_id == name] or [one for one in there if one.name == name]
    if not found:
        names = ", ".join(dict.fromkeys(shortly(one.name or one.model_id) for one in there)) or "none yet"
        raise TxlabError(f"There is no adapter {shortly(name)}: give a name or a run id. Adapters: {names}.")
    return found[-1]
