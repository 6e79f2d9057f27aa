"""Samplers, and what they are asked to draw."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt, StrictStr

from txlab.server.wire.base import CHECKPOINT, SAMPLER, SESSION, WireModel, example


class CreateSamplingSession(WireModel):
    """Sample from the base model, or from a checkpoint."""

    model_config = example(session_id=SESSION, sampling_session_seq_id=0, model_path=CHECKPOINT)

    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None


class SamplingSession(WireModel):
    """Its id."""

    sampling_session_id: str


class JoinSamplingSession(WireModel):
    """A client that has got the handle of a sampler asks for a number of its own."""

    model_config = example(sampling_session_id=SAMPLER)

    sampling_session_id: str


class JoinedSamplingSession(WireModel):
    """The client's number: its requests are numbered from ``client_counter`` billion on."""

    client_counter: int


class SamplerInfo(WireModel):
    """What a sampler samples from."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


class PromptChunk(WireModel):
    """Tokens of a prompt; other types are refused when the prompt is read."""

    type: Annotated[str, Field(description="Only `encoded_text` is read here.")] = "encoded_text"
    tokens: Annotated[list[StrictInt], Field(description="Token ids.")] = []


class Prompt(WireModel):
    """A prompt in pieces."""

    chunks: Annotated[list[PromptChunk], Field(description="Pieces that follow each other.")]


class SamplingParamsBody(WireModel):
    """How to draw."""

    max_tokens: Annotated[
        int | None, Field(description="Most tokens to draw; without it, what the context leaves.")
    ] = None
    seed: Annotated[
        Annotated[int, Field(ge=-(2**63), lt=2**64)] | None,
        Field(description="Makes draws reproducible, alone or in any batch; each sample still gets its own."),
    ] = None
    stop: Annotated[
        str | list[StrictInt] | list[StrictStr] | None,
        Field(description="Texts or token ids that end a sequence, and are part of it. Absent: EOS; `[]`: nothing."),
    ] = None
    temperature: Annotated[float, Field(description="0 is greedy.")] = 1.0
    top_k: Annotated[int, Field(description="Draw from so many likeliest tokens; -1 from all.")] = -1
    top_p: Annotated[float, Field(description="Draw from the likeliest tokens that hold so much of the mass.")] = 1.0


class TargetTokens(WireModel):
    """Token ids by place and choice: dense, row by row, or CSR, where ``data`` holds the listed cells alone."""

    data: list[StrictInt]
    dtype: Literal["int64"]
    shape: Annotated[list[int], Field(min_length=2, max_length=2)]
    sparse_crow_indices: Annotated[list[int] | None, Field(description="CSR: where each row begins in data.")] = None
    sparse_col_indices: Annotated[list[int] | None, Field(description="CSR: the column of each cell of data.")] = None


class SampleBody(WireModel):
    """Continue a prompt, and score it."""

    model_config = example(
        sampling_session_id=SAMPLER,
        seq_id=0,
        prompt={"chunks": [{"type": "encoded_text", "tokens": [504, 3575, 282, 4649, 314]}]},
        sampling_params={"max_tokens": 16, "temperature": 0.7, "seed": 1, "stop": ["\n"]},
        num_samples=4,
    )

    sampling_session_id: Annotated[str | None, Field(description="The sampler to draw with.")] = None
    seq_id: Annotated[
        Annotated[int, Field(ge=0, lt=2**63)] | None,
        Field(description="Place among the sampler's requests: the same one twice is a retry."),
    ] = None
    base_model: Annotated[str | None, Field(description="Without a sampler: the base model, by its name.")] = None
    model_path: Annotated[str | None, Field(description="Refused: weights need a sampler.")] = None
    prompt: Prompt
    sampling_params: SamplingParamsBody = SamplingParamsBody()
    num_samples: int = 1
    prompt_logprobs: Annotated[bool | None, Field(description="Score the prompt's own tokens.")] = False
    prompt_logprobs_last_n: Annotated[int | None, Field(description="Score only so many tokens at its end.")] = None
    topk_prompt_logprobs: Annotated[int, Field(description="The likeliest tokens in each place of the prompt.")] = 0
    topk_sample_logprobs: Annotated[
        int, Field(description="The likeliest tokens in each place of a sample, at the temperature that drew it.")
    ] = 0
    target_prompt_logprobs: Annotated[
        TargetTokens | None,
        Field(
            description="int64 [P - 1, K]: row i names tokens to score in the place of prompt[i + 1]; -1 names none."
        ),
    ] = None
    prompt_alt_tokens_k: Annotated[
        int, Field(description="Draws in each place of the prompt but the first, at the request's temperature.")
    ] = 0
    record_stability_info: Annotated[
        bool | None,
        Field(description="Accepted, and changes nothing: only the loss stable_reinforce, not served here, needs it."),
    ] = False
