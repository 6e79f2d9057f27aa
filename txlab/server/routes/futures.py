"""Results, asked for by request id, and the word that they are there."""

from __future__ import annotations

import math

from fastapi import APIRouter, Response

from txlab.server.completions import Completion
from txlab.server.errors import ApiError
from txlab.server.state import Server
from txlab.server.wire.base import json_bytes
from txlab.server.wire.futures import (
    CancelFuture,
    FutureCompletion,
    RetrievedFutures,
    RetrieveFuture,
    RetrieveFutures,
)

router = APIRouter(tags=["futures"])

# A result up to this size is sent unasked. The SDK lets results of 50 MiB in all be on their way at once, so that
# smaller ones do not fill its memory, and the extra round trip costs little beside reading a larger one.
UNANNOUNCED_BYTES = 2**20


@router.post("/retrieve_future", summary="Wait for a result", response_class=Response)
async def retrieve_future(body: RetrieveFuture, server: Server) -> Response:
    """Held until there is a result, or until ``poll_seconds`` are over: then 408, and the client asks again.

    To a client that allows it, the size of a large result is told first.
    """
    most_bytes = UNANNOUNCED_BYTES if body.allow_metadata_only else math.inf
    reply = await server.futures.wait(body.request_id, server.settings.poll_seconds, most_bytes)
    if reply is not None:
        return Response(reply.body, media_type=reply.media_type)
    pending = {"type": "try_again", "request_id": body.request_id, "queue_state": "active"}
    return Response(json_bytes(pending), status_code=408, media_type="application/json")


@router.post(
    "/retrieve_futures",
    summary="Wait for any of a sampler's requests to end",
    response_model_exclude_none=True,
)
async def retrieve_futures(body: RetrieveFutures, server: Server) -> RetrievedFutures:
    """One poll in the place of one for each request: held until something has ended, at most ``poll_seconds``."""
    log = server.sessions.sampler(body.target.sampling_session_id).log_of(body.target.cloned_sampler_id)
    if body.prev_cursor > log.cursor:
        raise ApiError(400, f"prev_cursor is {body.prev_cursor}: no poll was answered with it; start again with 0")
    server.futures.free(body.retrieved_request_ids, log)
    longest = server.settings.poll_seconds
    ended = await log.after(body.prev_cursor, longest if body.timeout is None else min(body.timeout, longest))
    cursor = ended[-1].cursor if ended else body.prev_cursor
    return RetrievedFutures(completions=[_completion(entry) for entry in ended], cursor=cursor)


def _completion(entry: Completion) -> FutureCompletion:
    return FutureCompletion(
        state="failed" if entry.failed else "finished",
        request_id=entry.request_id,
        response_payload_uncompressed_size=None if entry.failed else entry.size,
    )


@router.post("/cancel_future", summary="Stop a sample that nobody waits for any more")
async def cancel_future(body: CancelFuture, server: Server) -> dict[str, str]:
    """Its result becomes a failure; what has ended stays as it is. Only sampling requests can be cancelled."""
    server.futures.cancel(body.request_id)
    return {"request_id": body.request_id}
