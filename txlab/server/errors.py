"""How a refusal leaves the server, such that the SDK shows it to the user at once.

The SDK retries 408, 409, 429 and 5xx for minutes, or for ever, so no error here has such a status: what is wrong with
a request is 400, 401, 404 or 422, always with a JSON body; what fails later is reported through its future.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from txlab.engine.requests import RequestError
from txlab.server.openai.errors import is_openai_path, openai_refusal
from txlab.store.checkpoints import CheckpointError, CheckpointNotFoundError

log = logging.getLogger(__name__)


class ApiError(Exception):
    """A request is refused with an HTTP status and one sentence; ``field`` is what it is about, where that is known.

    ``code`` is OpenAI's word for the reason, which its clients act on.
    """

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.field = field
        self.code = code


def refusal(path: str, status: int, message: str, field: str | None = None, code: str | None = None) -> JSONResponse:
    """The body of every error: ``{"detail": message}``, and OpenAI's form where the path is one of its API."""
    if is_openai_path(path):
        return openai_refusal(status, message, field, code)
    return JSONResponse({"detail": message}, status)


def explain(problems: Sequence[Any]) -> str:
    """One line for pydantic's list of problems: which field, and what is wrong with it."""
    return "; ".join(f"{'.'.join(str(p) for p in problem['loc']) or 'body'}: {problem['msg']}" for problem in problems)


def malformed(error: RequestValidationError | ValidationError) -> ApiError:
    """400 for a body that is not JSON, 422 for one with wrong fields."""
    problems = error.errors()
    broken = any(problem["type"] == "json_invalid" for problem in problems)
    return ApiError(400 if broken else 422, explain(problems), field_of(problems[0]))


def field_of(problem: Any) -> str | None:
    """The field of the body that one of pydantic's problems is about."""
    return next((part for part in problem["loc"] if isinstance(part, str) and part != "body"), None)


def install_error_handlers(app: FastAPI) -> None:
    """Teach ``app`` to answer every kind of refusal."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> JSONResponse:
        return refusal(request.url.path, error.status, str(error), error.field, error.code)

    @app.exception_handler(RequestError)
    async def _request_error(request: Request, error: RequestError) -> JSONResponse:
        return refusal(request.url.path, 400, str(error))

    @app.exception_handler(CheckpointError)
    async def _checkpoint_error(request: Request, error: CheckpointError) -> JSONResponse:
        status = 404 if isinstance(error, CheckpointNotFoundError) else 400
        return refusal(request.url.path, status, str(error))

    @app.exception_handler(RequestValidationError)
    async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return await _api_error(request, malformed(error))

    @app.exception_handler(HTTPException)
    async def _no_route(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        return refusal(path, error.status_code, f"{error.detail}: this server has no {request.method} {path}")

    app.add_middleware(UnexpectedErrors)


class UnexpectedErrors:
    """The last net: a bug in a route is logged and answered with 400, which the SDK raises instead of retrying."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception as error:
            log.exception("%s %s failed", scope.get("method"), scope.get("path"))
            if not started:
                message = f"internal error, see the server's log: {error!r}"
                await refusal(scope["path"], 400, message)(scope, receive, send)
