"""Training runs, those of earlier servers too."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from txlab.server.auth import USER
from txlab.server.errors import ApiError
from txlab.server.state import Server, ServerState
from txlab.server.wire.checkpoints import Checkpoint
from txlab.server.wire.paging import AccessScope, Cursor, Limit, Offset
from txlab.server.wire.runs import TrainingRun, TrainingRuns
from txlab.store.checkpoint_info import Kind
from txlab.store.tables import RunRow

router = APIRouter(tags=["training runs"])


@router.get("/training_runs", summary="List training runs")
async def list_runs(
    server: Server,
    limit: Limit = 20,
    offset: Offset = 0,
    access_scope: AccessScope = "owned",
    project_id: Annotated[str | None, Query(description="Only those of this project's sessions.")] = None,
) -> TrainingRuns:
    """Newest first."""
    return await server.in_worker(_page, server, limit, offset, project_id)


@router.get("/training_runs/{model_id}", summary="Describe a training run")
async def get_run(model_id: str, server: Server, access_scope: AccessScope = "owned") -> TrainingRun:
    """What it is, when it was last used, and its newest checkpoints."""
    return await server.in_worker(_run, server, model_id)


def _page(server: ServerState, limit: int, offset: int, project_id: str | None) -> TrainingRuns:
    rows, total = server.records.runs(limit, offset, project_id)
    return TrainingRuns(
        training_runs=[_describe(server, row) for row in rows],
        cursor=Cursor(offset=offset, limit=limit, total_count=total),
    )


def _run(server: ServerState, model_id: str) -> TrainingRun:
    row = server.records.run(model_id)
    if row is None:
        raise ApiError(404, f"training run {model_id!r} is not known here")
    return _describe(server, row)


def _describe(server: ServerState, row: RunRow) -> TrainingRun:
    newest: dict[Kind, Checkpoint] = {}
    for info in server.checkpoint_index.of_run(row.model_id):
        newest.setdefault(info.address.kind, Checkpoint.of(info))
    return TrainingRun(
        training_run_id=row.model_id,
        base_model=row.base_model,
        model_owner=USER,
        lora_rank=row.lora["rank"],
        last_request_time=row.last_request,
        last_checkpoint=newest.get("weights"),
        last_sampler_checkpoint=newest.get("sampler_weights"),
        user_metadata=row.user_metadata or None,
    )
