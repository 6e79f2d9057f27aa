"""Adapters by the names that people give them."""

from __future__ import annotations

from collections.abc import Sequence

from txlab.engine.bus import AdapterView
from txlab.notebook.errors import TxlabError


def find_adapter(adapters: Sequence[AdapterView], name: str) -> AdapterView:
    """The newest of that name or run id. Raises TxlabError, which lists those that there are."""
    there = [one for one in adapters if one.state != "unloaded"]
    found = [one for one in there if name in (one.name, one.model_id)]
    if not found:
        names = ", ".join(dict.fromkeys(repr(one.name or one.model_id) for one in there)) or "none yet"
        raise TxlabError(f"There is no adapter {name!r}. Adapters: {names}.")
    return found[-1]
