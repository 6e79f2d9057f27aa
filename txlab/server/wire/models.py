"""Adapters."""

from __future__ import annotations

from typing import Any

from txlab.server.wire.base import BASE_MODEL, MODEL, SESSION, WireModel, example


class LoraConfigBody(WireModel):
    """Shape of an adapter."""

    rank: int = 32
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(WireModel):
    """Family of optimizer."""

    type: str = "adamw"


class CreateModel(WireModel):
    """A fresh adapter."""

    model_config = example(
        session_id=SESSION,
        model_seq_id=0,
        base_model=BASE_MODEL,
        lora_config={"rank": 32, "seed": 1},
        user_metadata={"name": "piglatin"},
    )

    session_id: str
    model_seq_id: int
    base_model: str
    lora_config: LoraConfigBody = LoraConfigBody()
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: dict[str, Any] | None = None


class ModelAddress(WireModel):
    """Body of get_info and unload_model."""

    model_config = example(model_id=MODEL)

    model_id: str


class ModelData(WireModel):
    """The base of an adapter; ``tokenizer_id`` is what AutoTokenizer loads."""

    arch: str
    model_name: str
    tokenizer_id: str


class ModelInfo(WireModel):
    """What is known of an adapter."""

    model_id: str
    model_data: ModelData
    optimizer_config: OptimizerConfig = OptimizerConfig()
    model_name: str
    is_lora: bool = True
    lora_rank: int
