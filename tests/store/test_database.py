"""The database under a root, alone and shared."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.exc import IntegrityError

from txlab.store.database import open_database
from txlab.store.tables import AuditRow, SamplerRow

OPEN_AND_WRITE = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from sqlalchemy import insert
from txlab.store.database import open_database
from txlab.store.tables import AuditRow

sys.stdin.readline()
database = open_database(Path(sys.argv[1]))
for number in range(50):
    with database.begin() as db:
        db.execute(insert(AuditRow).values(time=datetime.now(UTC), event="a_b", details={}))
"""


@pytest.fixture
def database(tmp_path: Path) -> Engine:
    return open_database(tmp_path / "deep" / "root")


def pragma(database: Engine, name: str) -> object:
    with database.connect() as db:
        return db.scalar(text(f"PRAGMA {name}"))


def test_database_is_made_for_several_processes(database: Engine):
    assert pragma(database, "journal_mode") == "wal"
    assert pragma(database, "busy_timeout") == 30_000


def test_a_row_may_not_refer_to_nothing(database: Engine):
    orphan = insert(SamplerRow).values(sampler_id="s", session_id="nobody", created=datetime.now(UTC), base_model="b")
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), database.begin() as db:
        db.execute(orphan)


def test_times_come_back_aware_and_sort_whatever_their_zone(database: Engine):
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    later = datetime(2026, 1, 1, 11, tzinfo=timezone(timedelta(hours=-3)))  # 14:00 UTC
    with database.begin() as db:
        db.execute(insert(AuditRow), [{"time": t, "event": "e", "details": {}} for t in (later, noon)])
        assert list(db.scalars(select(AuditRow.time).order_by(AuditRow.time))) == [noon, later.astimezone(UTC)]


def test_lower_knows_all_of_unicode(database: Engine):
    with database.connect() as db:
        assert db.scalar(select(func.lower("ÄÖ Ω"))) == "äö ω"
        assert db.scalar(select(func.lower(None))) is None


def test_opening_again_keeps_what_is_there(tmp_path: Path):
    for _ in range(2):
        with open_database(tmp_path).begin() as db:
            db.execute(insert(AuditRow).values(time=datetime.now(UTC), event="e", details={"a": 1}))
    with open_database(tmp_path).connect() as db:
        assert list(db.scalars(select(AuditRow.details))) == [{"a": 1}] * 2


def test_processes_create_and_write_one_database_at_the_same_time(tmp_path: Path):
    command = [sys.executable, "-c", OPEN_AND_WRITE, str(tmp_path)]
    processes = [Popen(command, stdin=PIPE, stderr=PIPE, text=True) for _ in range(3)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    with open_database(tmp_path).connect() as db:
        assert db.scalar(select(func.count()).select_from(AuditRow)) == 150
