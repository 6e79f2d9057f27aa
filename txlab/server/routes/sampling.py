"""Samplers, and what they draw."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import ValidationError

from txlab.engine.requests import LoadSnapshot, RequestError, Sample, SampleResult, SamplingParams
from txlab.engine.validation import validate
from txlab.server.errors import ApiError, malformed
from txlab.server.futures import Reply, proto_reply
from txlab.server.proto import encode_sample, narrow, sample_bytes
from txlab.server.sessions import Sampler
from txlab.server.state import Server, ServerState
from txlab.server.wire.futures import UntypedFuture
from txlab.server.wire.sampling import (
    CreateSamplingSession,
    Prompt,
    SampleBody,
    SamplerInfo,
    SamplingParamsBody,
    SamplingSession,
)

router = APIRouter(tags=["sampling"])

SAMPLE_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": SampleBody.model_json_schema()}}}
}


@router.post("/create_sampling_session", summary="Make a sampler of the base model or of a checkpoint")
async def create_sampling_session(body: CreateSamplingSession, server: Server) -> SamplingSession:
    """Made twice under one number it is the same sampler."""
    session = server.sessions.get(body.session_id)
    sampler_id = session.sampler_id(body.sampling_session_seq_id)
    if sampler_id not in session.samplers:
        if body.model_path is not None:
            await _load_sampler(server, body.session_id, sampler_id, body.model_path)
        elif body.base_model is not None:
            server.check_base_model(body.base_model)
            session.samplers[sampler_id] = Sampler(sampler_id, session.session_id, snapshot_id=None)
        else:
            raise ApiError(422, "expected base_model or model_path")
    return SamplingSession(sampling_session_id=sampler_id)


async def _load_sampler(server: ServerState, session_id: str, sampler_id: str, path: str) -> None:
    """Read a checkpoint and hand it to the engine, which takes it in before any sample that follows."""
    state, _ = await server.in_worker(
        server.checkpoints.read, path, base_model=server.engine.base.name, optimizer=False
    )
    session = server.sessions.get(session_id)  # it may have ended meanwhile
    if sampler_id not in session.samplers:  # or another try may have been faster
        request = LoadSnapshot(sampler_id, state, name=path)
        validate(request, server.engine.limits)
        session.samplers[sampler_id] = Sampler(sampler_id, session_id, snapshot_id=sampler_id, model_path=path)
        server.tell(request)


@router.get("/samplers/{sampler_id}", summary="Describe a sampler")
async def get_sampler(sampler_id: str, server: Server) -> SamplerInfo:
    """A client that was given only a path learns here which tokenizer fits."""
    sampler = server.sessions.sampler(sampler_id)
    return SamplerInfo(sampler_id=sampler_id, base_model=server.engine.base.name, model_path=sampler.model_path)


@router.post("/asample", summary="Continue a prompt", openapi_extra=SAMPLE_BODY)
async def asample(request: Request, server: Server) -> UntypedFuture:
    """Sequences are named when they are asked for, before they are drawn."""
    raw = await request.body()
    body = await server.convert(len(raw), _parse, raw)
    sampler = server.sessions.sampler(body.sampling_session_id)
    work = await server.convert(len(raw), _to_sample, body, sampler, server.engine.limits.max_context)
    validate(work, server.engine.limits)

    async def sample() -> Reply:
        result = await server.ask(work)
        assert isinstance(result, SampleResult)
        return proto_reply(await server.convert(sample_bytes(result), encode_sample, result))

    key = (sampler.sampler_id, body.seq_id)
    names = [f"{sampler.sampler_id}:{body.seq_id}:{index}" for index in range(body.num_samples)]
    return server.start("asample", key, sample, sample_sequence_ids=names)


def _parse(raw: bytes) -> SampleBody:
    try:
        return SampleBody.model_validate_json(raw)
    except ValidationError as error:
        raise malformed(error) from None


def _to_sample(body: SampleBody, sampler: Sampler, max_context: int) -> Sample:
    _refuse_unsupported(body)
    prompt = _tokens(body.prompt)
    return Sample(
        snapshot_id=sampler.snapshot_id,
        prompt=prompt,
        num_samples=body.num_samples,
        params=_params(body.sampling_params, room=max_context - len(prompt)),
        prompt_logprobs=body.prompt_logprobs,
        topk_prompt_logprobs=body.topk_prompt_logprobs,
    )


def _refuse_unsupported(body: SampleBody) -> None:
    for name in ("topk_sample_logprobs", "target_prompt_logprobs", "prompt_alt_tokens_k", "prompt_logprobs_last_n"):
        if getattr(body, name):
            raise RequestError(f"{name} is not supported by this server yet")


def _tokens(prompt: Prompt) -> np.ndarray:  # (P,) int32
    for index, chunk in enumerate(prompt.chunks):
        if chunk.type != "encoded_text":
            raise RequestError(f"prompt.chunks[{index}] is {chunk.type}: this model reads text tokens only")
    try:
        return narrow(np.array([token for chunk in prompt.chunks for token in chunk.tokens], np.int64))
    except OverflowError:
        raise RequestError("prompt has a token beyond 64 bits: is this the tokenizer of another model?") from None


def _params(body: SamplingParamsBody, room: int) -> SamplingParams:
    """Without max_tokens a sequence may fill the ``room`` that the context leaves."""
    return SamplingParams(
        max_tokens=max(1, room) if body.max_tokens is None else body.max_tokens,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else None if body.stop is None else tuple(body.stop),  # type: ignore[arg-type]
    )
