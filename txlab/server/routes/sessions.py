"""Sessions of client programs: begun, kept alive, ended, looked up."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from txlab.server.auth import USER
from txlab.server.errors import ApiError
from txlab.server.sdk_version import check_version
from txlab.server.state import Server, ServerState
from txlab.server.storage import Storage, storage_by_session
from txlab.server.trace import chrome_trace
from txlab.server.wire.base import json_bytes
from txlab.server.wire.paging import AccessScope, Limit, Offset
from txlab.server.wire.sessions import (
    AssignProject,
    ClientFinished,
    CreateSession,
    FinishReason,
    FinishSession,
    FoundSessions,
    SearchCursor,
    SearchSessions,
    SessionActive,
    SessionCreated,
    SessionHeartbeat,
    SessionIds,
    SessionInfo,
    SessionSummary,
    TraceExport,
)
from txlab.store.records import SessionQuery
from txlab.store.tables import SessionRow

router = APIRouter(tags=["sessions"])


@router.post("/create_session", summary="Begin a session")
async def create_session(body: CreateSession, server: Server) -> SessionCreated:
    """Models and samplers made in a session live as long as it."""
    check_version(body.sdk_version)
    session = server.sessions.create(
        body.display_name,
        tags=tuple(body.tags),
        user_metadata=body.user_metadata,
        project_id=body.project_id,
        sdk_version=body.sdk_version,
    )
    server.recorder.began(session)
    return SessionCreated(session_id=session.session_id)


@router.post("/session_heartbeat", summary="Keep a session alive")
async def heartbeat(body: SessionHeartbeat, server: Server) -> dict[str, str]:
    """410 stops a client that beats for a session which is no more."""
    try:
        server.sessions.get(body.session_id)
    except ApiError as error:
        raise ApiError(410, str(error)) from None
    server.records.touch_session(body.session_id)
    return {"type": "session_heartbeat"}


@router.post("/sessions/{session_id}/finish", summary="End a session and free what it held")
async def finish(session_id: str, body: FinishSession, server: Server) -> dict[str, str]:
    """The first reason counts; to end what has ended is no error."""
    server.sessions.end(session_id, body.reason.type, body.detail)
    return {}


@router.get("/sessions", summary="List sessions")
async def list_sessions(
    server: Server, limit: Limit = 20, offset: Offset = 0, access_scope: AccessScope = "owned"
) -> SessionIds:
    """Newest first, those that have ended and those of earlier servers too."""
    return SessionIds(sessions=await server.in_worker(server.records.session_ids, limit, offset))


@router.get("/sessions/{session_id}", summary="List what was made in a session")
async def get_session(session_id: str, server: Server, access_scope: AccessScope = "owned") -> SessionInfo:
    """Its training runs and samplers, whether they still live or not."""
    session = await _find(server, session_id)
    return SessionInfo(
        training_run_ids=await server.in_worker(server.records.runs_of, session_id),
        sampler_ids=await server.in_worker(server.records.samplers_of, session_id),
        user_metadata=session.user_metadata or None,
        display_name=session.display_name,
    )


@router.put("/sessions/{session_id}/project", summary="Move a session into a project", status_code=204)
async def assign_project(session_id: str, body: AssignProject, server: Server) -> None:
    """Its training runs and samplers move with it. A project is no more than a name."""
    if not await server.in_worker(server.records.move_session, session_id, body.project_id):
        raise _absent(session_id)
    server.recorder.audit("project_session_assigned", session_id=session_id, project_id=body.project_id)


@router.get("/sessions/{session_id}/trace_export", summary="Link to the timeline of a session's requests")
async def export_trace(session_id: str, request: Request, server: Server) -> TraceExport:
    """What is linked to can be opened in ui.perfetto.dev."""
    await _find(server, session_id)
    link = server.credentials.link(request.scope["path"].removesuffix("_export"))
    return TraceExport(url=f"{request.url.scheme}://{request.url.netloc}{link}")


@router.get("/sessions/{session_id}/trace", summary="Timeline of a session's requests", response_class=Response)
async def trace(session_id: str, server: Server) -> Response:
    """Made anew each time, in Chrome's trace format. Requests are remembered for 30 days."""
    await _find(server, session_id)
    return Response(await server.in_worker(_trace, server, session_id), media_type="application/json")


def _trace(server: ServerState, session_id: str) -> bytes:
    return json_bytes(chrome_trace(server.records.requests(session_id)))


async def _find(server: ServerState, session_id: str) -> SessionRow:
    session = await server.in_worker(server.records.session, session_id)
    if session is None:
        raise _absent(session_id)
    return session


def _absent(session_id: str) -> ApiError:
    return ApiError(404, f"session {session_id!r} is not known here")


# ------------------------------------------------------------------------------------------- search


@router.post("/sessions/search", summary="Find sessions")
async def search_sessions(body: SearchSessions, server: Server) -> FoundSessions:
    """Newest first. A page may be followed up by its cursor even while new sessions begin."""
    if body.owner.type == "user" and USER not in body.owner.owner_urns:
        return FoundSessions(sessions=[])
    rows = await server.in_worker(server.records.search, _query(body), body.limit + 1)
    page, last = rows[: body.limit], rows[body.limit - 1 : body.limit]
    more = len(rows) > body.limit
    storage = await server.in_worker(storage_by_session, server.checkpoint_index)
    return FoundSessions(
        sessions=[_summary(row, storage[row.session_id]) for row in page],
        next_cursor=SearchCursor(last_created_at=last[0].created, last_session_id=last[0].session_id) if more else None,
    )


def _query(body: SearchSessions) -> SessionQuery:
    cursor = body.cursor
    return SessionQuery(
        session_id=body.session_id,
        display_name=body.display_name,
        project_ids=body.project_ids,
        user_metadata=body.user_metadata,
        statuses=None if body.statuses is None else [status for query in body.statuses for status in query.matches],
        after=None if cursor is None else (cursor.last_created_at, cursor.last_session_id),
    )


def _summary(session: SessionRow, storage: Storage) -> SessionSummary:
    status: SessionActive | ClientFinished | None = None
    if session.ended is None:
        status = SessionActive()
    elif session.finish_reason is not None:
        status = ClientFinished(reason=FinishReason(type=session.finish_reason), detail=session.finish_detail)  # type: ignore[arg-type]
    return SessionSummary(
        session_id=session.session_id,
        created_at=session.created,
        owner=USER,
        project_id=session.project_id,
        status=status,
        checkpoints_count=storage.count,
        checkpoint_storage_bytes=storage.size_bytes,
        display_name=session.display_name,
        user_metadata=session.user_metadata or None,
    )
