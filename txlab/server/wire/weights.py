"""Checkpoints and samplers made of weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from txlab.server.wire.base import CHECKPOINT, MODEL, SESSION, SeqId, WireModel, example
from txlab.server.wire.models import OptimizerConfig


class SaveWeights(WireModel):
    """Write a checkpoint to train on from; ``path`` is its name."""

    model_config = example(model_id=MODEL, seq_id=3, path="step-100", ttl_seconds=604800, overwrite=False)

    model_id: str
    seq_id: SeqId
    path: str
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, Any] | None = None


class SaveWeightsForSampler(WireModel):
    """Write a checkpoint to sample from, or without ``path`` freeze the weights in memory."""

    model_config = example(model_id=MODEL, seq_id=4, sampling_session_seq_id=0, kind="snapshot")

    model_id: str
    seq_id: SeqId
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: int | None = None
    user_metadata: dict[str, Any] | None = None


class SaveWeightsExternal(WireModel):
    """Write the adapter in PEFT's format; ``path`` is its name."""

    model_config = example(model_id=MODEL, seq_id=5, path="for-peft")

    model_id: str
    seq_id: SeqId
    path: Annotated[str, Field(description="The name of the export, without slashes.")]
    ttl_seconds: Annotated[int | None, Field(description="1 hour to 10 years; null: for ever.")] = None
    age_encryption_recipients: Annotated[
        list[str] | None, Field(description="Public keys that every file is encrypted to, `age1…` or `ssh-…`.")
    ] = None


class LoadWeights(WireModel):
    """Load into a new model (``session_id``, ``model_seq_id``) or into an old one (``model_id``, ``seq_id``)."""

    model_config = example(session_id=SESSION, model_seq_id=1, path=CHECKPOINT, optimizer=True)

    path: str
    optimizer: bool
    session_id: str | None = None
    model_seq_id: int | None = None
    model_id: str | None = None
    seq_id: SeqId | None = None
    base_model: str | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: dict[str, Any] | None = None
    weights_access_token: Annotated[str | None, Field(description="Accepted; a server has one owner.")] = None


class WeightsPath(WireModel):
    """Body of weights_info."""

    model_config = example(tinker_path=CHECKPOINT)

    tinker_path: str


class WeightsInfo(WireModel):
    """What a checkpoint was made of."""

    base_model: str
    is_lora: bool = True
    lora_rank: int
    train_unembed: bool
    train_mlp: bool
    train_attn: bool
