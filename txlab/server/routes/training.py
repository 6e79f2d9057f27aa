"""Passes over data and optimizer steps.

A request that is refused has its place in the model's order all the same: the refusal goes through its future, and
its seq_id is used up, so that the requests behind it run.
"""

from __future__ import annotations

from typing import Any

import zstandard
from fastapi import APIRouter, Request
from pydantic import TypeAdapter, ValidationError

from txlab.engine.requests import (
    AdamParams,
    ForwardBackward,
    ForwardBackwardResult,
    Limits,
    OptimStep,
    OptimStepResult,
    RequestError,
)
from txlab.engine.validation import validate
from txlab.server.errors import ApiError, explain
from txlab.server.futures import Reply, json_reply, proto_reply
from txlab.server.proto import encode_pass, parse_pass, to_forward_backward
from txlab.server.state import Server
from txlab.server.wire.base import finite
from txlab.server.wire.futures import UntypedFuture
from txlab.server.wire.training import OptimStepBody

router = APIRouter(tags=["training"])

ADAM = TypeAdapter(AdamParams)
MAX_BODY = 256 * 2**20  # bytes of a decompressed body; the SDK sends chunks of 5 MB
PROTOBUF_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/x-protobuf": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/forward_backward", summary="Loss and gradients of some data", openapi_extra=PROTOBUF_BODY)
async def forward_backward(request: Request, server: Server) -> UntypedFuture:
    """Chunks of one call come concurrently and in any order; each is answered at once."""
    body = await request.body()
    zstd = request.headers.get("content-encoding") == "zstd"
    size = len(body) * (10 if zstd else 1)
    model_id, seq_id, work = await server.convert(size, _decode, body, zstd, server.engine.limits)
    server.sessions.model(model_id)

    async def run() -> Reply:
        with server.turn(model_id, seq_id):
            if isinstance(work, Exception):
                raise work
        result = await server.ask(work)
        assert isinstance(result, ForwardBackwardResult)
        size = sum(logprobs.nbytes for logprobs in result.logprobs)
        return proto_reply(await server.convert(size, encode_pass, result))

    return server.start("training", (model_id, seq_id), run, model_id=model_id)


def _decode(body: bytes, zstd: bool, limits: Limits) -> tuple[str, int, ForwardBackward | Exception]:
    """Read a body: whose request it is, its place, and the request or why it is refused."""
    message = parse_pass(_decompress(body) if zstd else body)
    try:
        request = to_forward_backward(message)
        validate(request, limits)
    except Exception as error:
        return message.model_id, message.seq_id, error
    return message.model_id, message.seq_id, request


def _decompress(body: bytes) -> bytes:
    try:
        if zstandard.frame_content_size(body) > MAX_BODY:
            raise ApiError(400, f"the body has more than {MAX_BODY} bytes: send fewer datums at once")
        return zstandard.ZstdDecompressor().decompress(body, MAX_BODY)
    except zstandard.ZstdError as error:
        raise ApiError(400, f"the body is no zstd frame: {error}") from None


@router.post("/optim_step", summary="Apply and clear the accumulated gradient")
async def optim_step(body: OptimStepBody, server: Server) -> UntypedFuture:
    """Metrics that are not finite are left out of the answer: JSON has no word for them."""
    server.sessions.model(body.model_id)

    async def step() -> Reply:
        with server.turn(body.model_id, body.seq_id):
            request = OptimStep(body.model_id, body.seq_id, _adam_params(body))
            validate(request, server.engine.limits)
        result = await server.ask(request)
        assert isinstance(result, OptimStepResult)
        return json_reply({"metrics": finite(result.metrics)})

    return server.start("training", (body.model_id, body.seq_id), step, model_id=body.model_id)


def _adam_params(body: OptimStepBody) -> AdamParams:
    if body.adam_params is None:
        kind = (body.optimizer_params or {}).get("type")
        raise RequestError(f"optimizer_params of type {kind!r}: this server has AdamParams only")
    try:
        return ADAM.validate_python(body.adam_params)
    except ValidationError as error:
        raise RequestError(f"adam_params.{explain(error.errors())}") from None
