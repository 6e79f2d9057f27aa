"""The database under the root: one SQLite file that several processes may share.

Each module that owns a table declares it on ``Base``; whoever is first to open the root creates what is missing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, URL, DateTime, Dialect, Engine, TypeDecorator, create_engine, event
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.schema import CreateIndex, CreateTable

FILE = "txlab.db"
BUSY_SECONDS = 30  # how long a statement waits for another process's write


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time: aware in Python, UTC in the file, where it sorts as text."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store an aware time."""
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Load an aware time."""
        return value and value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Base of every table. Times are aware, dicts and lists are JSON."""

    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON, dict[str, str]: JSON, list[str]: JSON}  # noqa: RUF012


def open_database(root: Path) -> Engine:
    """Open ``<root>/txlab.db`` and create the tables that it lacks.

    Only tables whose modules are imported are created, so open after importing them; opening again is harmless, and
    so is another process that opens the same root at the same time.
    """
    root.mkdir(parents=True, exist_ok=True)
    url = URL.create("sqlite", database=str(root / FILE))
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _configure)
    _create_missing(engine)
    return engine


def _configure(connection: Any, _record: Any) -> None:
    """Readers go on while another connection writes, and what was committed survives a killed process."""
    connection.create_function("lower", 1, lambda text: text and text.lower(), deterministic=True)  # all of Unicode
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _create_missing(engine: Engine) -> None:
    """Create by IF NOT EXISTS: ``create_all`` looks first and creates after, and two processes collide in between."""
    with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
