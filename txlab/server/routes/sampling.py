"""Samplers, and what they draw."""

from __future__ import annotations

import secrets
from dataclasses import replace

import numpy as np
from fastapi import APIRouter, Request
from pydantic import ValidationError

from txlab.engine.requests import LoadSnapshot, RequestError, Sample, SampleResult, SamplingParams
from txlab.engine.validation import check_target_shape, validate
from txlab.server.csr import Csr, read_csr
from txlab.server.document import json_body
from txlab.server.errors import ApiError, malformed
from txlab.server.futures import Reply, proto_reply
from txlab.server.proto import encode_sample, narrow, sample_bytes
from txlab.server.sessions import SEQ_IDS_PER_CLIENT, Sampler
from txlab.server.state import Server, ServerState
from txlab.server.wire.futures import UntypedFuture
from txlab.server.wire.sampling import (
    CreateSamplingSession,
    JoinedSamplingSession,
    JoinSamplingSession,
    Prompt,
    SampleBody,
    SamplerInfo,
    SamplingParamsBody,
    SamplingSession,
    TargetTokens,
)

router = APIRouter(tags=["sampling"])


@router.post("/create_sampling_session", summary="Make a sampler of the base model or of a checkpoint")
async def create_sampling_session(body: CreateSamplingSession, server: Server) -> SamplingSession:
    """Made twice under one number it is the same sampler."""
    session = server.sessions.get(body.session_id)
    sampler_id = session.sampler_id(body.sampling_session_seq_id)
    sampler = Sampler(sampler_id, session.session_id, snapshot_id=None, model_path=body.model_path)

    async def make() -> Sampler:
        if body.model_path is not None:
            await _load_sampler(server, sampler, body.model_path)
        elif body.base_model is not None:
            server.check_base_model(body.base_model)
            session.samplers[sampler_id] = sampler
        else:
            raise ApiError(422, "expected base_model or model_path")
        server.recorder.made(sampler)
        return sampler

    await session.make(sampler_id, make)
    return SamplingSession(sampling_session_id=sampler_id)


async def _load_sampler(server: ServerState, sampler: Sampler, path: str) -> None:
    """Read a checkpoint and hand it to the engine, which takes it in before any sample that follows."""
    state, _ = await server.in_worker(
        server.checkpoints.read, path, base_model=server.engine.base.name, optimizer=False
    )
    server.recorder.audit("checkpoint_read", tinker_path=path)
    session = server.sessions.get(sampler.session_id)  # it may have ended meanwhile
    sampler.snapshot_id = sampler.sampler_id
    request = LoadSnapshot(sampler.snapshot_id, state, name=path)
    validate(request, server.engine.limits)
    session.samplers[sampler.sampler_id] = sampler
    server.tell(request)


@router.post("/join_sampling_session", summary="Number one more client of a sampler")
async def join_sampling_session(body: JoinSamplingSession, server: Server) -> JoinedSamplingSession:
    """Clients that share a sampler through a handle or a pickle number their requests apart, a billion each."""
    return JoinedSamplingSession(client_counter=server.sessions.sampler(body.sampling_session_id).join())


@router.get("/samplers/{sampler_id}", summary="Describe a sampler")
async def get_sampler(sampler_id: str, server: Server) -> SamplerInfo:
    """A client that was given only a path learns here which tokenizer fits."""
    sampler = server.sessions.sampler(sampler_id)
    return SamplerInfo(sampler_id=sampler_id, base_model=server.engine.base.name, model_path=sampler.model_path)


@router.post("/asample", summary="Continue a prompt", openapi_extra=json_body(SampleBody))
async def asample(request: Request, server: Server) -> UntypedFuture:
    """Sequences are named when they are asked for, before they are drawn."""
    raw = await request.body()
    body = await server.convert(len(raw), _parse, raw)
    sampler = _sampler(body, server)
    work, cells = await server.convert(len(raw), _to_sample, body, sampler, server.engine.limits.max_context)
    validate(work, server.engine.limits)

    async def sample() -> Reply:
        newest = replace(work, snapshot_id=sampler.snapshot_id)  # where it is inflight, its weights have moved on
        result = await server.ask(newest, sampler.sampler_id)
        assert isinstance(result, SampleResult)
        return proto_reply(await server.convert(sample_bytes(result), encode_sample, result, cells))

    seq_id = body.seq_id or 0
    names = [f"{sampler.sampler_id}:{seq_id}:{index}" for index in range(body.num_samples)]
    ends = sampler.log_of(seq_id // SEQ_IDS_PER_CLIENT)
    return server.start("asample", (sampler.sampler_id, seq_id), sample, ends=ends, sample_sequence_ids=names)


def _parse(raw: bytes) -> SampleBody:
    try:
        return SampleBody.model_validate_json(raw)
    except ValidationError as error:
        raise malformed(error) from None


def _sampler(body: SampleBody, server: ServerState) -> Sampler:
    """Find the sampler that a request names. One that names the base model gets a sampler of its own."""
    if body.sampling_session_id is not None:
        if body.seq_id is None:
            raise ApiError(422, "seq_id: expected, as the sampler's requests are told apart by it")
        return server.sessions.sampler(body.sampling_session_id)
    if body.model_path is not None:
        raise ApiError(400, "model_path: make a sampler of it with create_sampling_session, and name that instead")
    if body.base_model is None:
        raise ApiError(422, "sampling_session_id: expected the id of a sampler")
    server.check_base_model(body.base_model)
    return Sampler(f"base-{secrets.token_hex(8)}", session_id="", snapshot_id=None)


def _to_sample(body: SampleBody, sampler: Sampler, max_context: int) -> tuple[Sample, Csr | None]:
    """Convert a body; also the cells that sparse targets list, which the answer lists again."""
    prompt = _tokens(body.prompt)
    targets, cells = _targets(body.target_prompt_logprobs, len(prompt))
    work = Sample(
        snapshot_id=sampler.snapshot_id,
        prompt=prompt,
        num_samples=body.num_samples,
        params=_params(body.sampling_params, room=max_context - len(prompt)),
        prompt_logprobs=bool(body.prompt_logprobs),
        prompt_logprobs_last_n=body.prompt_logprobs_last_n,
        topk_prompt_logprobs=body.topk_prompt_logprobs,
        topk_sample_logprobs=body.topk_sample_logprobs,
        target_prompt_logprobs=targets,
        prompt_alt_tokens_k=body.prompt_alt_tokens_k,
        of_run=True,
    )
    return work, cells


def _tokens(prompt: Prompt) -> np.ndarray:  # (P,) int32
    for index, chunk in enumerate(prompt.chunks):
        if chunk.type != "encoded_text":
            raise RequestError(f"prompt.chunks[{index}] is {chunk.type}: this model reads text tokens only")
    return narrow(_int64([token for chunk in prompt.chunks for token in chunk.tokens], "prompt"))


def _targets(body: TargetTokens | None, prompt: int) -> tuple[np.ndarray | None, Csr | None]:  # (P - 1, K) int32
    """Read the tokens to score, -1 where there is none, and where a sparse body lists them."""
    if body is None:
        return None, None
    name = "target_prompt_logprobs"
    check_target_shape(body.shape, prompt)
    rows, width = body.shape
    values = _int64(body.data, name)
    if body.sparse_crow_indices is None or body.sparse_col_indices is None:
        if len(values) != rows * width:
            raise RequestError(f"{name} has {len(values)} values: expected {rows * width}, as its shape says")
        return narrow(values.reshape(rows, width)), None
    cells = read_csr(_int64(body.sparse_crow_indices, name), _int64(body.sparse_col_indices, name), (rows, width), name)
    if len(values) != len(cells.columns):
        raise RequestError(f"{name} lists {len(cells.columns)} cells and has {len(values)} values")
    return narrow(cells.spread(values, width, empty=-1)), cells


def _int64(values: list[int], where: str) -> np.ndarray:  # (N,) int64
    try:
        return np.array(values, np.int64)
    except OverflowError:
        raise RequestError(f"{where} has a number beyond 64 bits: is this the tokenizer of another model?") from None


def _params(body: SamplingParamsBody, room: int) -> SamplingParams:
    """Without max_tokens a sequence may fill the ``room`` that the context leaves."""
    return SamplingParams(
        max_tokens=max(1, room) if body.max_tokens is None else body.max_tokens,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else None if body.stop is None else tuple(body.stop),
    )
