"""Training requests that are JSON; forward_backward is protobuf."""

from __future__ import annotations

from typing import Any

from txlab.server.wire.base import SeqId, WireModel


class OptimStepBody(WireModel):
    """An optimizer step; its parameters are read when it is this request's turn to be refused."""

    model_id: str
    seq_id: SeqId
    adam_params: dict[str, Any] | None = None
    optimizer_params: dict[str, Any] | None = None
