"""The tables of what happened: sessions, training runs and their curves, samplers, requests, audited events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, MappedAsDataclass, mapped_column

from txlab.store.database import Base


class SessionRow(MappedAsDataclass, Base, kw_only=True):
    """A session of a client program. ``server_id`` says in which server it lives, see ``liveness``."""

    __tablename__ = "sessions"
    __table_args__ = (Index("newest_sessions", "created", "session_id"),)

    session_id: Mapped[str] = mapped_column(primary_key=True)
    server_id: Mapped[str]
    created: Mapped[datetime]
    last_activity: Mapped[datetime]  # its client's last heartbeat
    ended: Mapped[datetime | None] = mapped_column(default=None, index=True)
    finish_reason: Mapped[str | None] = mapped_column(default=None)  # as its client said, None where it did not
    finish_detail: Mapped[str | None] = mapped_column(default=None)
    tags: Mapped[list[str]]
    user_metadata: Mapped[dict[str, str]]
    display_name: Mapped[str | None]
    project_id: Mapped[str]
    sdk_version: Mapped[str | None]


class RunRow(MappedAsDataclass, Base, kw_only=True):
    """A training run: one adapter, from its creation on."""

    __tablename__ = "training_runs"
    __table_args__ = (Index("newest_runs", "created", "model_id"),)

    model_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.session_id"), index=True)
    created: Mapped[datetime]
    last_request: Mapped[datetime]
    name: Mapped[str]
    base_model: Mapped[str]
    lora: Mapped[dict[str, Any]]
    user_metadata: Mapped[dict[str, str]]


class PointRow(MappedAsDataclass, Base, kw_only=True):
    """What a training run's curves got at one moment: by an optimizer step, or from a user.

    It refers to no run that must exist: adapters that no client made have points too.
    """

    __tablename__ = "points"

    number: Mapped[int] = mapped_column(primary_key=True, init=False)
    model_id: Mapped[str] = mapped_column(index=True)
    step: Mapped[int]
    tokens: Mapped[int]  # trained until then
    time: Mapped[float]  # seconds since the epoch, as curves have them
    metrics: Mapped[dict[str, Any]]  # name -> number


class MarkRow(MappedAsDataclass, Base, kw_only=True):
    """Something remarkable about an optimizer step of a training run, in words."""

    __tablename__ = "marks"

    number: Mapped[int] = mapped_column(primary_key=True, init=False)
    model_id: Mapped[str] = mapped_column(index=True)
    step: Mapped[int]
    time: Mapped[float]  # that of the step's point
    text: Mapped[str]


class OriginRow(MappedAsDataclass, Base, kw_only=True):
    """The checkpoint that a training run began with. The run that it was saved in may be unknown here."""

    __tablename__ = "origins"

    model_id: Mapped[str] = mapped_column(primary_key=True)
    parent_id: Mapped[str]  # the run that the checkpoint was saved in
    checkpoint: Mapped[str]  # its name within that run
    step: Mapped[int]  # its optimizer step
    saved: Mapped[datetime]
    continues: Mapped[bool]  # with the optimizer's state, so that steps are counted on


class SamplerRow(MappedAsDataclass, Base, kw_only=True):
    """A sampler of the base model, of a checkpoint or of a model's weights."""

    __tablename__ = "samplers"

    sampler_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.session_id"), index=True)
    created: Mapped[datetime]
    base_model: Mapped[str]
    model_path: Mapped[str | None] = mapped_column(default=None)
    model_id: Mapped[str | None] = mapped_column(default=None)


class RequestRow(MappedAsDataclass, Base, kw_only=True):
    """A request that the engine served, for traces and figures of usage."""

    __tablename__ = "requests"

    number: Mapped[int] = mapped_column(primary_key=True, init=False)
    kind: Mapped[str]  # name of the engine's request type
    session_id: Mapped[str | None] = mapped_column(index=True)
    owner_id: Mapped[str | None]  # model or sampler
    base_model: Mapped[str]
    started: Mapped[datetime] = mapped_column(index=True)
    seconds: Mapped[float]
    tokens_in: Mapped[int] = mapped_column(default=0)  # trained or prefilled
    tokens_cached: Mapped[int] = mapped_column(default=0)  # of tokens_in, prefilled before
    tokens_out: Mapped[int] = mapped_column(default=0)  # sampled
    error: Mapped[str | None] = mapped_column(default=None)


class AuditRow(MappedAsDataclass, Base, kw_only=True):
    """Something that an administrator may want to look up later."""

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(primary_key=True, init=False)
    time: Mapped[datetime] = mapped_column(index=True)
    event: Mapped[str]  # "<resource>_<action>"
    details: Mapped[dict[str, Any]]
