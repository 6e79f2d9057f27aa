"""What a running lab serves, and what the parts of ``Lab`` have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from txlab.config import Settings
from txlab.engine.bus import EventBus
from txlab.notebook.errors import TxlabError

if TYPE_CHECKING:
    from txlab.engine.engine import Engine
    from txlab.models.base import BaseModel
    from txlab.notebook.host import Host
    from txlab.notebook.own_client import OwnClient
    from txlab.server.state import ServerState
    from txlab.store.store import Store


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A base model, the engine that trains it, and the API over it."""

    base: BaseModel
    engine: Engine
    store: Store
    server: ServerState  # belongs to the host's loop: touch it there only
    host: Host
    own_client: OwnClient


class LabPart:
    """One concern of ``Lab``: methods that work on what the lab serves."""

    settings: Settings
    _bus: EventBus
    _served: Served | None = None  # None before the start and after the stop

    @contextmanager
    def _stored(self) -> Iterator[Store]:
        """What is kept under the root, whether the lab runs or not."""
        if self._served is not None:
            yield self._served.store
            return
        from txlab.store.store import Store

        with closing(Store(self.settings.store.root)) as store:
            yield store

    def _serving(self) -> Served:
        """What is served. Raises TxlabError where the lab is stopped."""
        if self._served is None:
            raise TxlabError("This lab is stopped. Start it with %txserve or txlab.serve().")
        return self._served
