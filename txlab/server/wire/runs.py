"""Training runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from pydantic import Field

from txlab.server.wire.base import WireModel
from txlab.server.wire.checkpoints import Checkpoint
from txlab.server.wire.paging import Cursor


class TrainingRun(WireModel):
    """An adapter, from its creation on, whether it is still loaded or not."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool = True
    corrupted: Annotated[bool, Field(description="Never: a step that fails leaves the adapter as it was.")] = False
    lora_rank: int
    last_request_time: datetime
    last_checkpoint: Annotated[Checkpoint | None, Field(description="The newest to train on from.")]
    last_sampler_checkpoint: Annotated[Checkpoint | None, Field(description="The newest to sample from.")]
    user_metadata: Mapping[str, str] | None


class TrainingRuns(WireModel):
    """A page of training runs, newest first."""

    training_runs: list[TrainingRun]
    cursor: Cursor
