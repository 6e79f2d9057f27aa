"""JSON bodies of the Tinker API. Requests ignore fields they do not know, as newer SDKs send more."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SeqId = Annotated[int, Field(ge=1)]  # place among a model's training requests


class WireModel(BaseModel):
    """Allows fields named ``model_…``."""

    model_config = ConfigDict(protected_namespaces=())


def json_bytes(value: Any) -> bytes:
    """Encode compactly; NaN and infinity raise ValueError, since the SDK's decoder would not take them."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that JSON can carry: NaN and infinity are left out."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


# ------------------------------------------------------------------------------- service, sessions


class ClientConfig(WireModel):
    """Flags for the client. Bounds the samples in flight: each holds a socket, at both ends of one process."""

    sample_max_concurrent_requests: int = 256


class DynamicConfig(WireModel):
    """Flags that the client asks for again and again."""

    refresh_interval_sec: int = 300


class SupportedModel(WireModel):
    """A base model that is served."""

    model_name: str
    max_context_length: int
    trainable: bool = True
    sampleable: bool = True


class Capabilities(WireModel):
    """What this server has."""

    supported_models: list[SupportedModel]


class CreateSession(WireModel):
    """A client program begins."""

    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    display_name: str | None = None


class SessionCreated(WireModel):
    """Its id."""

    session_id: str


class SessionHeartbeat(WireModel):
    """A client program lives."""

    session_id: str


class FinishReason(WireModel):
    """How a client program ended."""

    type: Literal["success", "errored", "interrupted"] = "success"


class FinishSession(WireModel):
    """A client program ends."""

    reason: FinishReason = FinishReason()
    detail: str | None = None


# ----------------------------------------------------------------------------------------- futures


class UntypedFuture(WireModel):
    """Where a result can be asked for."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class RetrieveFuture(WireModel):
    """Ask for a result."""

    request_id: str


# ------------------------------------------------------------------------------------------ models


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

    session_id: str
    model_seq_id: int
    base_model: str
    lora_config: LoraConfigBody = LoraConfigBody()
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: dict[str, Any] | None = None


class ModelAddress(WireModel):
    """Body of get_info and unload_model."""

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
    model_name: str
    is_lora: bool = True
    lora_rank: int


# ---------------------------------------------------------------------------------------- training


class OptimStepBody(WireModel):
    """An optimizer step; its parameters are read when it is this request's turn to be refused."""

    model_id: str
    seq_id: SeqId
    adam_params: dict[str, Any] | None = None
    optimizer_params: dict[str, Any] | None = None


# ----------------------------------------------------------------------------------------- weights


class SaveWeights(WireModel):
    """Write a checkpoint to train on from; ``path`` is its name."""

    model_id: str
    seq_id: SeqId
    path: str
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, Any] | None = None


class SaveWeightsForSampler(WireModel):
    """Write a checkpoint to sample from, or without ``path`` freeze the weights in memory."""

    model_id: str
    seq_id: SeqId
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: int | None = None
    user_metadata: dict[str, Any] | None = None


class LoadWeights(WireModel):
    """Load into a new model (``session_id``, ``model_seq_id``) or into an old one (``model_id``, ``seq_id``)."""

    path: str
    optimizer: bool
    session_id: str | None = None
    model_seq_id: int | None = None
    model_id: str | None = None
    seq_id: SeqId | None = None
    base_model: str | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: dict[str, Any] | None = None


class WeightsPath(WireModel):
    """Body of weights_info."""

    tinker_path: str


class WeightsInfo(WireModel):
    """What a checkpoint was made of."""

    base_model: str
    is_lora: bool = True
    lora_rank: int
    train_unembed: bool
    train_mlp: bool
    train_attn: bool


# ---------------------------------------------------------------------------------------- sampling


class CreateSamplingSession(WireModel):
    """Sample from the base model, or from a checkpoint."""

    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None


class SamplingSession(WireModel):
    """Its id."""

    sampling_session_id: str


class SamplerInfo(WireModel):
    """What a sampler samples from."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


class PromptChunk(WireModel):
    """Tokens of a prompt; other types are refused when the prompt is read."""

    type: str = "encoded_text"
    tokens: list[int] = []


class Prompt(WireModel):
    """A prompt in pieces."""

    chunks: list[PromptChunk]


class SamplingParamsBody(WireModel):
    """How to draw; without ``stop`` a sequence ends at EOS, with an empty one at nothing."""

    max_tokens: int | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | list[int] | list[str] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class SampleBody(WireModel):
    """Continue a prompt. The last four fields are known only to be refused."""

    sampling_session_id: str
    seq_id: Annotated[int, Field(ge=0, lt=2**63)]
    prompt: Prompt
    sampling_params: SamplingParamsBody = SamplingParamsBody()
    num_samples: int = 1
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: Any = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
