"""What has ended among the requests of one client of a sampler, for the one poll that waits for all of them.

All methods run on the server's event loop.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Completion:
    """A request that has ended: ``size`` bytes of result wait to be fetched, or its failure does."""

    cursor: int
    request_id: str
    failed: bool
    size: int


class CompletionLog:
    """Completions in order, each under a cursor greater than the one before it.

    An entry stays until its client has said that it saw it, or until its result is forgotten.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Completion] = {}  # by request id, oldest first
        self.cursor = 0  # of the newest entry ever
        self._news = asyncio.Event()

    def add(self, request_id: str, *, failed: bool, size: int) -> None:
        """Note that a request has ended, and wake who waits for that."""
        self.cursor += 1
        self._entries[request_id] = Completion(self.cursor, request_id, failed, size)
        self._news.set()

    def drop(self, request_id: str) -> None:
        """Forget a request."""
        self._entries.pop(request_id, None)

    def wake(self) -> None:
        """Let who waits look again, though nothing has ended."""
        self._news.set()

    async def after(self, cursor: int, seconds: float) -> list[Completion]:
        """Return what ended after ``cursor``, and forget what ended up to it.

        Where there is nothing yet, waits for ``seconds`` at the most; the list may then be empty.
        """
        self._entries = {name: entry for name, entry in self._entries.items() if entry.cursor > cursor}
        if not self._entries and seconds > 0:
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), seconds)
        return [entry for entry in self._entries.values() if entry.cursor > cursor]
