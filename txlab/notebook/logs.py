"""Log records in a ring buffer: what a server prints from its threads would land in whatever cell is newest."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

from txlab.notebook.texts import Text

LOGGERS = ("txlab", "uvicorn")
_COLOURS = {
    " WARNING ": "var(--jp-warn-color1, #b45309)",
    " ERROR ": "var(--jp-error-color1, #b91c1c)",
    " CRITICAL ": "var(--jp-error-color1, #b91c1c)",
}


class Logs(Text):
    """Lines of a log, oldest first; a notebook shows warnings and errors in colour."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        lines = "\n".join(_coloured(line) for line in self.splitlines())
        return f'<pre role="log" tabindex="0" style="max-height:24em;overflow:auto;margin:0">{lines}</pre>'


def _coloured(line: str) -> str:
    for level, colour in _COLOURS.items():
        if level in line[:20]:  # the time and the level come first
            return f'<span style="color:{colour}">{escape(line)}</span>'
    return escape(line)


class LogBuffer(logging.Handler):
    """Keeps the last ``limit`` log records as text."""

    def __init__(self, limit: int = 2000):
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
        self._lines: deque[str] = deque(maxlen=limit)

    def emit(self, record: logging.LogRecord) -> None:
        """Append a formatted record."""
        self._lines.append(self.format(record))

    def tail(self, count: int) -> Logs:
        """The last ``count`` records, oldest first."""
        return Logs("\n".join(list(self._lines)[-count:]) if count > 0 else "")

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
