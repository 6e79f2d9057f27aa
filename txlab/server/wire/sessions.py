"""Sessions of client programs."""

from __future__ import annotations

from typing import Any, Literal

from txlab.server.wire.base import WireModel


class CreateSession(WireModel):
    """A client program begins."""

    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    display_name: str | None = None


class SessionCreated(WireModel):
    """Its id."""

    session_id: str


class SessionHeartbeat(WireModel):
    """A client program lives."""

    session_id: str


class FinishReason(WireModel):
    """How a client program ended."""

    type: Literal["success", "errored", "interrupted"] = "success"


class FinishSession(WireModel):
    """A client program ends."""

    reason: FinishReason = FinishReason()
    detail: str | None = None
