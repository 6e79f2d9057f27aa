"""Runs of earlier kernels, as a store has them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from txlab.store.records import Records
from txlab.store.tables import RunRow, SessionRow

SESSION = "earlier"


def record_session(records: Records, created: datetime) -> None:
    """The session that ``record_run``'s runs belong to."""
    row = SessionRow(
        session_id=SESSION,
        server_id=records.server_id,
        created=created,
        last_activity=created,
        tags=[],
        user_metadata={},
        display_name=None,
        project_id="default",
        sdk_version=None,
    )
    records.add(row)


def record_run(records: Records, model_id: str, name: str, created: datetime, **more: Any) -> None:
    """A training run of rank 8."""
    columns = {"last_request": created, "base_model": "base", "lora": {"rank": 8}, "user_metadata": {}} | more
    records.add(RunRow(model_id=model_id, session_id=SESSION, created=created, name=name, **columns))
