"""Results, asked for by request id."""

from __future__ import annotations

from fastapi import APIRouter, Response

from txlab.server.state import Server
from txlab.server.wire.base import json_bytes
from txlab.server.wire.futures import RetrieveFuture

router = APIRouter(tags=["futures"])


@router.post("/retrieve_future", summary="Wait for a result", response_class=Response)
async def retrieve_future(body: RetrieveFuture, server: Server) -> Response:
    """Held until there is a result, or until ``poll_seconds`` are over: then 408, and the client asks again."""
    reply = await server.futures.wait(body.request_id, server.settings.poll_seconds)
    if reply is not None:
        return Response(reply.body, media_type=reply.media_type)
    pending = {"type": "try_again", "request_id": body.request_id, "queue_state": "active"}
    return Response(json_bytes(pending), status_code=408, media_type="application/json")
