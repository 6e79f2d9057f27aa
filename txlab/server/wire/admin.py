"""Audit log and figures of usage."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from txlab.server.wire.base import WireModel


class AuditEntry(WireModel):
    """Something that happened."""

    timestamp: datetime
    event: Annotated[str, Field(description="`<resource>_<action>`.")]
    event_details: Annotated[dict[str, Any], Field(description="Who did it, and what it was about.")]


class AuditLog(WireModel):
    """A day's events, in order of time."""

    entries: list[AuditEntry]


class TrainingUsage(WireModel):
    """Tokens of forward and backward passes."""

    type: Literal["training"] = "training"
    token_count: int


class PrefillUsage(WireModel):
    """Tokens of prompts."""

    type: Literal["sampling_prefill"] = "sampling_prefill"
    cached: Annotated[bool, Field(description="Whether they were found in the cache.")]
    token_count: int


class SampledUsage(WireModel):
    """Tokens drawn."""

    type: Literal["sampling_sample"] = "sampling_sample"
    token_count: int


class CheckpointUsage(WireModel):
    """Checkpoints written."""

    type: Literal["checkpoint"] = "checkpoint"
    count: int


UsageInfo = Annotated[TrainingUsage | PrefillUsage | SampledUsage | CheckpointUsage, Field(discriminator="type")]


class UsageEvent(WireModel):
    """What a session used in an hour. It has no price: a lab sends no bills."""

    bucket_start: datetime
    bucket_end: datetime
    base_model: str
    user_id: str
    session_id: str | None
    project_id: str | None
    event_info: UsageInfo


class UsageSession(WireModel):
    """What a session says of itself."""

    user_metadata: dict[str, str] | None


class UsageReport(WireModel):
    """Usage by the hour."""

    data: list[UsageEvent]
    sessions: Annotated[dict[str, UsageSession], Field(description="The sessions in `data`, by id.")]


class StorageItem(WireModel):
    """What the checkpoints of a project take."""

    project_id: Annotated[str | None, Field(description="Null for checkpoints whose session is not recorded.")]
    org_user_urn: str
    checkpoint_count: int
    size_bytes: int
    size_gigabytes: Annotated[float, Field(description="Of 10⁹ bytes.")]


class StorageReport(WireModel):
    """What all checkpoints take, by project."""

    data: list[StorageItem]
