"""Checkpoints: listed, published, timed, copied, deleted."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header

from txlab.server.errors import ApiError
from txlab.server.recording import as_texts
from txlab.server.sessions import Session
from txlab.server.state import Server, ServerState
from txlab.server.wire.checkpoints import (
    Checkpoint,
    CheckpointPage,
    CopiedWeights,
    CopyWeights,
    RunCheckpoints,
    SetTtl,
)
from txlab.server.wire.paging import Cursor, Limit, Offset
from txlab.store.checkpoint_info import Address, CheckpointInfo, Kind
from txlab.store.tables import RunRow


async def sweep_expired(server: Server) -> None:
    """Let the files of expired checkpoints go, from the first request on that is about any."""
    server.expiry.begin()


async def _target(model_id: str, kind: Kind, name: str) -> Address:
    return Address(model_id, kind, name)


Target = Annotated[Address, Depends(_target)]

RUN = "/training_runs/{model_id}/checkpoints"
ONE = RUN + "/{kind}/{name}"
NOT_FOUND: Mapping[int | str, dict[str, Any]] = {
    404: {"description": "There is no such checkpoint, or it has expired."}
}

router = APIRouter(tags=["checkpoints"], dependencies=[Depends(sweep_expired)])


@router.get("/checkpoints", summary="List all checkpoints")
async def list_checkpoints(server: Server, limit: Limit = 100, offset: Offset = 0) -> CheckpointPage:
    """Newest first, of all runs, those of earlier servers and of other kernels on this root too."""
    infos, total = await server.in_worker(server.checkpoint_index.page, limit, offset)
    return CheckpointPage(
        checkpoints=[Checkpoint.of(info) for info in infos],
        cursor=Cursor(offset=offset, limit=limit, total_count=total),
    )


@router.get(RUN, summary="List the checkpoints of a training run")
async def list_run_checkpoints(model_id: str, server: Server) -> RunCheckpoints:
    """Newest first; a run that is not known has none."""
    infos = await server.in_worker(server.checkpoint_index.of_run, model_id)
    return RunCheckpoints(checkpoints=[Checkpoint.of(info) for info in infos])


@router.delete(ONE, summary="Delete a checkpoint", status_code=204, responses={**NOT_FOUND})
async def delete_checkpoint(target: Target, server: Server) -> None:
    """For good. Samplers and models that were made of it live on: they hold its weights in memory."""
    await server.in_worker(server.checkpoints.delete, target.path)
    server.recorder.audit("checkpoint_deleted", tinker_path=target.path)


@router.post(ONE + "/publish", summary="Mark a checkpoint as public", status_code=204, responses={**NOT_FOUND})
async def publish(target: Target, server: Server) -> None:
    """No error where it is public already. Whoever has the server's key can read all checkpoints, public or not."""
    await server.in_worker(server.checkpoints.publish, target.path, True)
    server.recorder.audit("checkpoint_published", tinker_path=target.path)


@router.delete(ONE + "/publish", summary="Mark a checkpoint as private", status_code=204, responses={**NOT_FOUND})
async def unpublish(target: Target, server: Server) -> None:
    """No error where it is private already."""
    await server.in_worker(server.checkpoints.publish, target.path, False)
    server.recorder.audit("checkpoint_unpublished", tinker_path=target.path)


@router.put(ONE + "/ttl", summary="Set when a checkpoint expires", status_code=204, responses={**NOT_FOUND})
async def set_ttl(target: Target, body: SetTtl, server: Server) -> None:
    """Counted from now; null lets it live for ever. What has expired cannot be brought back."""
    await server.in_worker(server.checkpoints.set_ttl, target.path, body.ttl_seconds)


# -------------------------------------------------------------------------------------------- copy


@router.post("/copy_weights", summary="Copy a checkpoint", responses={**NOT_FOUND})
async def copy_weights(
    body: CopyWeights,
    server: Server,
    x_idempotency_key: Annotated[
        str | None, Header(description="A retry with the same key gets the same copy.")
    ] = None,
) -> CopiedWeights:
    """The copy keeps kind and name, belongs to a new training run, and shares nothing with its source."""
    source = Address.parse(body.source_path)
    session = _destination(server, body, x_idempotency_key)
    target = replace(source, model_id=session.model_id(body.model_seq_id or 0))
    if target.model_id in session.models:
        raise ApiError(400, f"{target.model_id!r} is a model that trains: expected a model_seq_id not yet used")
    info = await server.in_worker(server.checkpoints.copy, source.path, target, body.ttl_seconds)
    await server.in_worker(_record_run, server, session, info)
    return CopiedWeights(tinker_path=info.path)


def _destination(server: ServerState, body: CopyWeights, key: str | None) -> Session:
    """The session that will own the copy: a living one, or a new one that is over as soon as it is made."""
    if body.session_id is not None and body.model_seq_id is not None:
        return server.sessions.get(body.session_id)
    if body.destination_project_id is None:
        raise ApiError(422, "expected destination_project_id, or session_id and model_seq_id")
    # Named after the key, so that a retry finds the copy even after a restart.
    name = secrets.token_hex(8) if key is None else hashlib.sha256(key.encode()).hexdigest()[:16]
    return Session(name, f"copy of {body.source_path}", project_id=body.destination_project_id, status="success")


def _record_run(server: ServerState, session: Session, info: CheckpointInfo) -> None:
    """Note down the run of a copy, and its session where that is new."""
    if server.records.session(session.session_id) is None:
        server.recorder.began(session)
        server.recorder.ended(session)
    if server.records.run(info.address.model_id) is None:
        now = datetime.now(UTC)
        server.records.add(
            RunRow(
                model_id=info.address.model_id,
                session_id=session.session_id,
                created=now,
                last_request=now,
                name=f"copy of {info.copied_from}",
                base_model=info.base_model,
                lora=asdict(info.lora),
                user_metadata=as_texts(info.user_metadata),
            )
        )
