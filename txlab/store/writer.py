"""One thread that brings writes to the database in the order in which they were asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Engine, Executable
from sqlalchemy.exc import SQLAlchemyError

from txlab.threads import daemon_thread

log = logging.getLogger(__name__)

Write = tuple[Executable, Mapping[str, Any]]

BATCH = 1000  # writes of one transaction: another process waits for no longer than these take


class Writer:
    """Whoever writes never waits; whoever reads calls ``flush`` first. All methods may be called from any thread."""

    def __init__(self, database: Engine):
        self._database = database
        self._queue: SimpleQueue[Write | threading.Event | None] = SimpleQueue()
        self._lock = threading.Lock()  # nothing is queued behind the end
        self._closed = False
        self._thread = daemon_thread(self._run, "txlab-records")
        self._thread.start()

    def write(self, statement: Executable, **parameters: Any) -> None:
        """Queue a statement. A write that fails is logged; one that comes after ``close`` is dropped."""
        self._put((statement, parameters))

    def flush(self) -> None:
        """Return when everything that was queued before is committed."""
        done = threading.Event()
        if self._put(done):
            done.wait()

    def close(self) -> None:
        """Write what is queued and end. A second call does nothing."""
        self._put(None)
        self._thread.join()

    def _put(self, item: Write | threading.Event | None) -> bool:
        with self._lock:
            if self._closed:
                return False
            self._queue.put(item)
            self._closed = item is None
            return True

    def _run(self) -> None:
        items: list[Write | threading.Event | None] = []
        while None not in items:
            items = [self._queue.get()]
            with suppress(Empty):
                while len(items) < BATCH:
                    items.append(self._queue.get_nowait())
            self._commit([item for item in items if isinstance(item, tuple)])
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()

    def _commit(self, writes: Sequence[Write]) -> None:
        """Write in one transaction; where that fails, each in its own, so that one bad write costs no other."""
        try:
            with self._database.begin() as connection:
                for statement, group in groupby(writes, itemgetter(0)):
                    connection.execute(statement, [parameters for _, parameters in group])
        except SQLAlchemyError:
            if len(writes) == 1:
                log.exception("a record was not written")
                return
            for write in writes:
                self._commit([write])
