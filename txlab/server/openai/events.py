"""A response of server-sent events that knows when nobody listens any more."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from txlab.engine.requests import RequestError
from txlab.server.openai.errors import ErrorBody, ErrorDetail

log = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """Sends each model as one event, and OpenAI's mark of the end. ``close`` is called however it ends.

    A failure on the way is an event, after which there is no mark: the status was sent long before.
    """

    media_type = "text/event-stream"

    def __init__(self, models: AsyncIterator[BaseModel], close: Callable[[], None]):
        super().__init__(_events(models), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Not the generator closes: of a client that has left already it is never begun."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _events(models: AsyncIterator[BaseModel]) -> AsyncIterator[str]:
    try:
        async for model in models:
            yield f"data: {model.model_dump_json()}\n\n"
    except Exception as error:
        yield f"data: {_failure(error).model_dump_json()}\n\n"
    else:
        yield "data: [DONE]\n\n"


def _failure(error: Exception) -> ErrorBody:
    if isinstance(error, RequestError):
        kind = "invalid_request_error" if error.category == "user" else "server_error"
        return ErrorBody(error=ErrorDetail(message=str(error), type=kind))
    log.error("a stream failed", exc_info=error)
    message = f"internal error, see the server's log: {error!r}"
    return ErrorBody(error=ErrorDetail(message=message, type="server_error"))
