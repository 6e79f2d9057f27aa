"""What happened on this server, and how much was used. There are no bills, so nothing has a price."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from txlab.server.auth import USER
from txlab.server.errors import ApiError
from txlab.server.state import Server, ServerState
from txlab.server.storage import Storage, storage_by_session
from txlab.server.wire.admin import (
    AuditEntry,
    AuditLog,
    CheckpointUsage,
    PrefillUsage,
    SampledUsage,
    StorageItem,
    StorageReport,
    TrainingUsage,
    UsageEvent,
    UsageInfo,
    UsageReport,
    UsageSession,
)
from txlab.store.records import Usage

router = APIRouter(tags=["admin"])

HOUR = timedelta(hours=1)
LONGEST_REPORT = timedelta(days=14)
GIGABYTE = 10**9

EventType = Literal["all", "checkpoints", "projects", "teams", "organizations"]


@router.get("/audit", summary="What happened on a day")
async def audit(
    server: Server,
    event_type: Annotated[EventType, Query(description="Which resource's events.")] = "all",
    day: Annotated[date | None, Query(description="From midnight to midnight UTC; today, if absent.")] = None,
) -> AuditLog:
    """Checkpoints written, read, published or deleted, and sessions moved between projects."""
    start = datetime.combine(day or datetime.now(UTC).date(), time(), UTC)
    resource = None if event_type == "all" else event_type.removesuffix("s")
    try:
        end = start + timedelta(days=1)
    except OverflowError:
        return AuditLog(entries=[])
    rows = await server.in_worker(server.records.audit, start, end, resource)
    return AuditLog(
        entries=[AuditEntry(timestamp=row.time, event=row.event, event_details=row.details) for row in rows]
    )


@router.get("/billing/usage/events", summary="Tokens by the hour")
async def usage_events(
    server: Server,
    starting_on: Annotated[AwareDatetime, Query(description="First hour, on the hour.")],
    ending_before: Annotated[AwareDatetime, Query(description="End of the last hour; at most 14 days later.")],
) -> UsageReport:
    """What the engine did for each session. Single requests, and so these figures, are kept for 30 days."""
    _check_window(starting_on, ending_before)
    return await server.in_worker(_usage_report, server, starting_on, ending_before)


@router.get("/billing/usage/checkpoints/current", summary="Disk space of the checkpoints")
async def checkpoint_storage(
    server: Server,
    project_id: Annotated[str | None, Query(description="Only this project's; absent: all.")] = None,
) -> StorageReport:
    """As it is now, by project."""
    return await server.in_worker(_storage_report, server, project_id)


def _check_window(start: datetime, end: datetime) -> None:
    for name, moment in (("starting_on", start), ("ending_before", end)):
        if moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0) != moment:
            raise ApiError(422, f"{name} is {moment.isoformat()}: expected a full hour of UTC")
    if not timedelta() < end - start <= LONGEST_REPORT:
        raise ApiError(422, "ending_before must be later than starting_on, by 14 days at most")


def _usage_report(server: ServerState, start: datetime, end: datetime) -> UsageReport:
    used = server.records.usage(start, end)
    sessions = server.records.sessions({row.session_id for row in used if row.session_id is not None})
    events = [
        UsageEvent(
            bucket_start=row.hour,
            bucket_end=row.hour + HOUR,
            base_model=row.base_model,
            user_id=USER,
            session_id=row.session_id,
            project_id=sessions[row.session_id].project_id if row.session_id in sessions else None,
            event_info=info,
        )
        for row in used
        for info in _infos(row)
    ]
    about = {name: UsageSession(user_metadata=session.user_metadata or None) for name, session in sessions.items()}
    return UsageReport(data=events, sessions=about)


def _infos(usage: Usage) -> Iterator[UsageInfo]:
    """What the requests of one kind come to; nothing for kinds that use no tokens."""
    match usage.kind:
        case "ForwardBackward":
            yield TrainingUsage(token_count=usage.tokens_in)
        case "ExportAdapter":
            yield CheckpointUsage(count=usage.requests)
        case "Sample":
            if usage.tokens_in > usage.tokens_cached:
                yield PrefillUsage(cached=False, token_count=usage.tokens_in - usage.tokens_cached)
            if usage.tokens_cached:
                yield PrefillUsage(cached=True, token_count=usage.tokens_cached)
            if usage.tokens_out:
                yield SampledUsage(token_count=usage.tokens_out)


def _storage_report(server: ServerState, project_id: str | None) -> StorageReport:
    by_session = storage_by_session(server.checkpoint_index)
    sessions = server.records.sessions(by_session.keys())
    by_project: defaultdict[str | None, Storage] = defaultdict(Storage)
    for session_id, storage in by_session.items():
        by_project[sessions[session_id].project_id if session_id in sessions else None].add(storage)
    return StorageReport(
        data=[
            StorageItem(
                project_id=name,
                org_user_urn=USER,
                checkpoint_count=storage.count,
                size_bytes=storage.size_bytes,
                size_gigabytes=storage.size_bytes / GIGABYTE,
            )
            for name, storage in by_project.items()
            if project_id is None or name == project_id
        ]
    )
