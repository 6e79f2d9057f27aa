"""Sessions of client programs."""

from __future__ import annotations

from fastapi import APIRouter

from txlab.server.errors import ApiError
from txlab.server.state import Server
from txlab.server.wire.sessions import CreateSession, FinishSession, SessionCreated, SessionHeartbeat

router = APIRouter(tags=["sessions"])


@router.post("/create_session", summary="Begin a session")
async def create_session(body: CreateSession, server: Server) -> SessionCreated:
    """Models and samplers made in a session live as long as it."""
    return SessionCreated(session_id=server.sessions.create(body.display_name).session_id)


@router.post("/session_heartbeat", summary="Keep a session alive")
async def heartbeat(body: SessionHeartbeat, server: Server) -> dict[str, str]:
    """410 stops a client that beats for a session which is no more."""
    try:
        server.sessions.get(body.session_id)
    except ApiError as error:
        raise ApiError(410, str(error)) from None
    return {"type": "session_heartbeat"}


@router.post("/sessions/{session_id}/finish", summary="End a session and free what it held")
async def finish(session_id: str, body: FinishSession, server: Server) -> dict[str, str]:
    """The first reason counts; to end what has ended is no error."""
    server.sessions.end(session_id, f"was finished by its client ({body.reason.type})")
    return {}
