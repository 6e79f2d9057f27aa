"""Passes over data and optimizer steps.

A request that is refused has its place in the model's order all the same: the refusal goes through its future, and
its seq_id is used up, so that the requests behind it run. So it is where a body is refused at once (`SequencedRoute`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import zstandard
from fastapi import APIRouter, Request
from pydantic import TypeAdapter, ValidationError

from txlab.engine.losses import Losses
from txlab.engine.pending_step import TOLD_SECONDS
from txlab.engine.requests import (
    AdamParams,
    ForwardBackward,
    ForwardBackwardResult,
    OptimStep,
    OptimStepResult,
    RequestError,
)
from txlab.engine.validation import validate
from txlab.server.errors import ApiError, explain
from txlab.server.futures import Reply, json_reply, proto_reply
from txlab.server.proto import encode_pass, parse_pass, to_forward_backward
from txlab.server.refused import SequencedRoute
from txlab.server.sdk_version import NEEDED
from txlab.server.sessions import session_of
from txlab.server.state import Server
from txlab.server.wire.base import finite
from txlab.server.wire.futures import UntypedFuture
from txlab.server.wire.training import OptimStepBody

if TYPE_CHECKING:
    from txlab.engine.engine import Engine

router = APIRouter(tags=["training"], route_class=SequencedRoute)

ADAM = TypeAdapter(AdamParams)
LOSS_ID = ":loss:"  # between a session's id and the number of its uploaded loss
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
    model_id, seq_id, backward, work = await server.convert(size, _decode, body, zstd, server.engine)
    server.sessions.model(model_id)

    async def run() -> Reply:
        async with _told_later(backward):
            with server.turn(model_id, seq_id, "forward_backward" if backward else None):
                if isinstance(work, Exception):
                    raise work
            result = await server.ask(work)
        assert isinstance(result, ForwardBackwardResult)
        size = sum(logprobs.nbytes for logprobs in result.logprobs)
        return proto_reply(await server.convert(size, encode_pass, result))

    return server.start("training", (model_id, seq_id), run, model_id=model_id)


@asynccontextmanager
async def _told_later(backward: bool) -> AsyncIterator[None]:
    """Tell of a failed pass a little later, so that a client that knows of it differs from one that sent on ahead."""
    try:
        yield
    except Exception:
        if backward:
            await asyncio.sleep(TOLD_SECONDS)
        raise


def _decode(body: bytes, zstd: bool, engine: Engine) -> tuple[str, int, bool, ForwardBackward | Exception]:
    """Read a body: whose request it is, its place, if it is a backward pass, and the request or why it is refused."""
    message = parse_pass(_decompress(body) if zstd else body)
    whose = message.model_id, message.seq_id, not message.forward_only
    try:
        request = _resolve_loss(to_forward_backward(message), engine.losses)
        validate(request, engine.limits, engine.losses)
    except Exception as error:
        return *whose, error
    return *whose, request


def _resolve_loss(request: ForwardBackward, losses: Losses) -> ForwardBackward:
    """Put the id of an uploaded loss in the place of ``custom``; RequestError unless it is this session's own."""
    if request.loss != "custom":
        if LOSS_ID in request.loss:
            raise RequestError(f"loss_fn {request.loss!r} is a loss_id: name it in loss_fn_config of loss_fn 'custom'")
        return request
    loss_id = request.loss_config.get("loss_id")
    if set(request.loss_config) != {"loss_id"} or not isinstance(loss_id, str):
        raise RequestError("loss_fn 'custom' takes loss_fn_config {'loss_id': text} of create_custom_loss, alone")
    if not loss_id.startswith(session_of(request.model_id) + LOSS_ID) or losses.get(loss_id) is None:
        raise RequestError(f"loss_id {loss_id!r} is unknown in this session: create the loss with create_custom_loss")
    return replace(request, loss=loss_id, loss_config={})


def _decompress(body: bytes) -> bytes:
    try:
        if zstandard.frame_content_size(body) > MAX_BODY:
            raise ApiError(400, f"the body has more than {MAX_BODY} bytes: send fewer datums at once")
        return zstandard.ZstdDecompressor().decompress(body, MAX_BODY)
    except zstandard.ZstdError as error:
        raise ApiError(400, f"the body is no zstd frame: {error}") from None


@router.post("/forward", include_in_schema=False)
async def forward() -> None:
    """A route that only SDKs had which are too old."""
    raise ApiError(404, f"there is no route for passes without gradients: forward_backward has forward_only; {NEEDED}")


@router.post("/optim_step", summary="Apply and clear the accumulated gradient")
async def optim_step(body: OptimStepBody, server: Server) -> UntypedFuture:
    """Metrics that are not finite are left out of the answer: JSON has no word for them."""
    server.sessions.model(body.model_id)

    async def step() -> Reply:
        try:
            with server.turn(body.model_id, body.seq_id, "optim_step"):
                request = OptimStep(body.model_id, body.seq_id, _adam_params(body))
                validate(request, server.engine.limits)
        except RequestError as error:
            dropped = "Whatever was accumulated for this step was dropped: send forward_backward again, then optim_step"
            raise RequestError(f"{error}. {dropped}") from None
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
