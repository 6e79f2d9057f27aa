"""How much the checkpoints take, by the session that made them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from txlab.server.sessions import session_of
from txlab.store.checkpoint_index import CheckpointIndex

ALL = 2**62


@dataclass(slots=True)
class Storage:
    """Checkpoints and their bytes on disk."""

    count: int = 0
    size_bytes: int = 0

    def add(self, other: Storage) -> None:
        """Count ``other`` in."""
        self.count += other.count
        self.size_bytes += other.size_bytes


def storage_by_session(index: CheckpointIndex) -> defaultdict[str, Storage]:
    """Storage of every session that has checkpoints. Blocks on the disk."""
    found: defaultdict[str, Storage] = defaultdict(Storage)
    for info in index.page(ALL, 0)[0]:
        found[session_of(info.address.model_id)].add(Storage(1, info.size_bytes))
    return found
