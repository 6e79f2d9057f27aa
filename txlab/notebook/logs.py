"""Log records in a ring buffer: what a server prints from its threads would land in whatever cell is newest."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("txlab", "uvicorn")


class LogBuffer(logging.Handler):
    """Keeps the last ``limit`` log records as text."""

    def __init__(self, limit: int = 2000):
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
        self._lines: deque[str] = deque(maxlen=limit)

    def emit(self, record: logging.LogRecord) -> None:
        """Append a formatted record."""
        self._lines.append(self.format(record))

    def tail(self, count: int) -> str:
        """The last ``count`` records, oldest first."""
        return "\n".join(list(self._lines)[-count:]) if count > 0 else ""

    @contextmanager
    def capture(self) -> Iterator[None]:
        """While open, the server's loggers write here and nowhere else."""
        loggers = [logging.getLogger(name) for name in LOGGERS]
        before = [(logger.level, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.addHandler(self)
            logger.setLevel(logging.INFO)
            logger.propagate = False
        try:
            yield
        finally:
            for logger, (level, propagate) in zip(loggers, before, strict=True):
                logger.removeHandler(self)
                logger.setLevel(level)
                logger.propagate = propagate
