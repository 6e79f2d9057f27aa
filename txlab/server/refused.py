"""Requests of a model that are refused at once: they use up their place in the model's order.

The SDK counts on after a refusal, so without this all that it sends next would wait for the refused request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from txlab.engine.pending_step import TOLD_SECONDS
from txlab.engine.requests import Half
from txlab.server.errors import ApiError, malformed
from txlab.server.futures import Reply
from txlab.server.place import read_place
from txlab.server.state import ServerState

HALVES: dict[str, Half] = {"forward_backward": "forward_backward", "optim_step": "optim_step"}  # by route


class SequencedRoute(APIRoute):
    """A route of requests with a model_id and a seq_id."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Serve as other routes do; whatever the refusal, its seq_id is used up before it is answered."""
        serve = super().get_route_handler()

        async def serve_or_use_up(request: Request) -> Response:
            try:
                return await serve(request)
            except Exception as error:
                await _use_up(request, malformed(error) if isinstance(error, RequestValidationError) else error)
                raise

        return serve_or_use_up


async def _use_up(request: Request, reason: Exception) -> None:
    """Fail the future of a refused request's place, if its body names one; a future that there is already stays."""
    server: ServerState = request.app.state.server
    try:
        body = await request.body()
    except ClientDisconnect:  # it will send all of it once more
        return
    place = await server.convert(len(body), read_place, body, request.headers.get("content-encoding") == "zstd")
    if place is None:
        return
    with suppress(ApiError):  # no such model: nothing waits
        server.sessions.model(place[0])

        half = HALVES.get(request.url.path.rpartition("/")[2])

        async def fail() -> Reply:
            with server.turn(*place, half):
                raise reason

        server.start("training", place, fail)
        if half == "forward_backward":  # as of any failed pass, its client is told a little later
            await asyncio.sleep(TOLD_SECONDS)
