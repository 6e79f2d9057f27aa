"""Sessions of client programs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from txlab.server.wire.base import SESSION, WireModel, example


class CreateSession(WireModel):
    """A client program begins."""

    model_config = example(
        tags=["tutorial"], user_metadata={"run": "piglatin"}, display_name="Pig Latin", sdk_version="0.38.0"
    )

    tags: Annotated[list[str], Field(description="Words to find it by; from `TINKER_TAGS`.")] = []
    user_metadata: Annotated[dict[str, Any] | None, Field(description="What the user keeps with it.")] = None
    display_name: Annotated[str | None, Field(description="Its name for people; need not be unique.")] = None
    project_id: Annotated[str | None, Field(description="Project to put it in; a new name makes a new one.")] = None
    sdk_version: Annotated[str | None, Field(description="Version of the client.")] = None


class SessionCreated(WireModel):
    """Its id."""

    session_id: str


class SessionHeartbeat(WireModel):
    """A client program lives."""

    model_config = example(session_id=SESSION)

    session_id: str


class FinishReason(WireModel):
    """How a client program ended."""

    type: Literal["success", "errored", "interrupted"] = "success"


class FinishSession(WireModel):
    """A client program ends."""

    model_config = example(reason={"type": "success"}, detail="done")

    reason: FinishReason = FinishReason()
    detail: str | None = None


class AssignProject(WireModel):
    """Another project for a session."""

    model_config = example(project_id="tutorials")

    project_id: Annotated[str, Field(min_length=1, description="A new name makes a new project.")]


class SessionIds(WireModel):
    """A page of sessions, newest first."""

    sessions: list[str]


class SessionInfo(WireModel):
    """What was made in a session."""

    training_run_ids: Annotated[list[str], Field(description="Oldest first.")]
    sampler_ids: Annotated[list[str], Field(description="Oldest first.")]
    user_metadata: Mapping[str, str] | None
    display_name: str | None


class TraceExport(WireModel):
    """Where a session's timeline is found. It is made when it is fetched, so it is always ready."""

    status: Literal["ready"] = "ready"
    url: Annotated[str, Field(description="A link that needs no key and is good for an hour.")]


# ------------------------------------------------------------------------------------------- search


class SearchOwner(WireModel):
    """Whose sessions. A server has one owner."""

    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: Annotated[list[str], Field(description="For `user`: whose.")] = []


class StatusQuery(WireModel):
    """A status to match. No session here is ever `cancelled` or `failed`."""

    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: Annotated[
        list[Literal["success", "errored", "interrupted"]] | None,
        Field(min_length=1, description="For `client_finished`: what the client said; null matches all."),
    ] = None

    @property
    def matches(self) -> list[str]:
        """The statuses that match, as they are recorded."""
        if self.type == "client_finished":
            return list(self.reasons or ("success", "errored", "interrupted"))
        return [self.type]


class SearchCursor(WireModel):
    """The last session of a page."""

    last_created_at: AwareDatetime
    last_session_id: str


class SearchSessions(WireModel):
    """What to find."""

    model_config = example(display_name="pig", statuses=[{"type": "active"}], limit=20)

    session_id: Annotated[str | None, Field(description="Exact; with `display_name`, either suffices.")] = None
    project_ids: Annotated[list[str] | None, Field(description="Null searches all projects.")] = None
    user_metadata: Annotated[dict[str, str], Field(description="Pairs that must all be there.")] = {}
    display_name: Annotated[
        str | None, Field(min_length=1, description="Words that must each appear in the name, in any case.")
    ] = None
    owner: SearchOwner = SearchOwner()
    statuses: Annotated[list[StatusQuery] | None, Field(min_length=1, description="Any of these; null is all.")] = None
    limit: Annotated[int, Field(ge=1, le=200, description="The most that one page holds.")] = 50
    cursor: Annotated[SearchCursor | None, Field(description="`next_cursor` of the page before.")] = None


class SessionActive(WireModel):
    """Its client has not finished it, and its server runs."""

    type: Literal["active"] = "active"


class ClientFinished(WireModel):
    """Its client has finished it."""

    type: Literal["client_finished"] = "client_finished"
    reason: FinishReason
    detail: str | None


class SessionSummary(WireModel):
    """A session that was found."""

    session_id: str
    created_at: datetime
    owner: str
    project_id: str
    status: Annotated[
        SessionActive | ClientFinished | None, Field(description="Null where its client or its server just went away.")
    ]
    checkpoints_count: int
    checkpoint_storage_bytes: int
    display_name: str | None
    user_metadata: Mapping[str, str] | None


class FoundSessions(WireModel):
    """A page of sessions, newest first."""

    sessions: list[SessionSummary]
    next_cursor: Annotated[SearchCursor | None, Field(description="Null on the last page.")] = None
