"""Which servers of a root are alive: each holds a lock file, which the system frees when its process dies."""

from __future__ import annotations

import secrets
from pathlib import Path

from filelock import FileLock, Timeout


class Presence:
    """A server's place among those that share a root, from construction until ``close``."""

    def __init__(self, root: Path):
        self.server_id = secrets.token_hex(8)
        self._folder = root / "servers"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._file(self.server_id), thread_local=False)
        self._lock.acquire()
        for file in self._folder.glob("*.lock"):
            self.is_alive(file.stem)  # clears away what dead servers left

    def is_alive(self, server_id: str) -> bool:
        """Whether that server's process still has the root open."""
        if server_id == self.server_id:
            return self._lock.is_locked
        file = self._file(server_id)
        if not file.exists():
            return False
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
        file.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Leave. A second call does nothing."""
        self._lock.release()
        self._file(self.server_id).unlink(missing_ok=True)

    def _file(self, server_id: str) -> Path:
        return self._folder / f"{server_id}.lock"
