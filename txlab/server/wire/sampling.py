"""Samplers, and what they are asked to draw."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from txlab.server.wire.base import WireModel


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
