"""Checkpoints as the lists show them, and what is asked of one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from txlab.server.recording import as_texts
from txlab.server.wire.base import CHECKPOINT, WireModel, example
from txlab.server.wire.paging import Cursor
from txlab.store.checkpoint_info import CheckpointInfo, Kind

TYPES: Mapping[Kind, Literal["training", "sampler", "external"]] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}
Ttl = Annotated[int | None, Field(description="Seconds until it expires, 1 hour to 10 years; null: never.")]


class Checkpoint(WireModel):
    """One checkpoint of a training run."""

    checkpoint_id: Annotated[str, Field(description="Its place in the run: `<kind>/<name>`.")]
    checkpoint_type: Literal["training", "sampler", "external"]
    time: Annotated[datetime, Field(description="When it was written, in UTC.")]
    tinker_path: str
    size_bytes: int
    public: bool
    user_metadata: dict[str, str] | None
    expires_at: Annotated[datetime | None, Field(description="In UTC; null: never.")]

    @classmethod
    def of(cls, info: CheckpointInfo) -> Checkpoint:
        """Show what the store knows of a checkpoint."""
        return cls(
            checkpoint_id=info.address.checkpoint_id,
            checkpoint_type=TYPES[info.address.kind],
            time=info.created,
            tinker_path=info.path,
            size_bytes=info.size_bytes,
            public=info.public,
            user_metadata=as_texts(info.user_metadata) or None,
            expires_at=info.expires,
        )


class RunCheckpoints(WireModel):
    """All checkpoints of one training run, newest first."""

    checkpoints: list[Checkpoint]


class CheckpointPage(WireModel):
    """A page of all checkpoints, newest first."""

    checkpoints: list[Checkpoint]
    cursor: Cursor


class SetTtl(WireModel):
    """When a checkpoint expires, counted from now."""

    model_config = example(ttl_seconds=604800)

    ttl_seconds: Ttl


class ExternalUrls(WireModel):
    """Where the files of an export are fetched without an API key."""

    urls: Annotated[dict[str, str], Field(description="By the file's path within the checkpoint.")]
    expires: Annotated[datetime, Field(description="Until when the URLs are good, in UTC.")]


class CopyWeights(WireModel):
    """Copy a checkpoint into a project, or into a session as a run of its own."""

    model_config = example(source_path=CHECKPOINT, destination_project_id="tutorials")

    source_path: Annotated[str, Field(description="A `tinker://` path of any kind.")]
    destination_project_id: Annotated[str | None, Field(description="Project of the copy's new session.")] = None
    session_id: Annotated[str | None, Field(description="Session of the copy, with model_seq_id.")] = None
    model_seq_id: Annotated[int | None, Field(ge=0, description="Number of the copy's run in the session.")] = None
    ttl_seconds: Ttl = None
    weights_access_token: Annotated[str | None, Field(description="Accepted; a server has one owner.")] = None


class CopiedWeights(WireModel):
    """Where the copy is."""

    tinker_path: str
