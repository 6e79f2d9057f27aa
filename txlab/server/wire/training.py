"""Training requests that are JSON; forward_backward is protobuf."""

from __future__ import annotations

from typing import Any

from txlab.server.wire.base import MODEL, SeqId, WireModel, example


class OptimStepBody(WireModel):
    """An optimizer step; its parameters are read when it is this request's turn to be refused."""

    model_config = example(
        model_id=MODEL,
        seq_id=2,
        adam_params={
            "learning_rate": 1e-4,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-12,
            "weight_decay": 0.0,
            "grad_clip_norm": 0.0,
        },
    )

    model_id: str
    seq_id: SeqId
    adam_params: dict[str, Any] | None = None
    optimizer_params: dict[str, Any] | None = None
