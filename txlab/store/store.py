"""Everything that outlives a server: one object for all that is kept under a root."""

from __future__ import annotations

from pathlib import Path

from txlab.store.checkpoint_index import CheckpointIndex
from txlab.store.checkpoints import Checkpoints
from txlab.store.database import open_database
from txlab.store.records import Records


class Store:
    """The checkpoints and the records under ``root``, which several processes may have open at once."""

    def __init__(self, root: Path):
        self._database = open_database(root)
        self.checkpoints = Checkpoints(root)
        self.checkpoint_index = CheckpointIndex(self.checkpoints, self._database)
        self.records = Records(root, self._database)

    def close(self) -> None:
        """Write what is queued and leave. A second call does nothing."""
        self.records.close()
        self._database.dispose()
