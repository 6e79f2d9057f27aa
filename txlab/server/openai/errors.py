"""How a refusal looks to OpenAI's clients, which raise an exception class by status and read ``error`` of the body.

They too retry 408, 409, 429 and 5xx, so none of these is ever answered.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

PREFIXES = ("/v1", "/oai/api/v1")  # what clients take as base_url; the second as on Tinker's own service
CODES = {(401, None): "invalid_api_key", (404, "model"): "model_not_found"}


class ErrorDetail(BaseModel):
    """What was wrong."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    """One sentence for people."""
    type: str = "invalid_request_error"
    """Or `server_error`, where the request was good."""
    param: str | None = None
    """The field that it is about, where that is known."""
    code: str | None = None
    """A word for programs, where there is one."""


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request cannot be served as it is"},
    401: {"model": ErrorBody, "description": "Wrong or missing API key"},
    404: {"model": ErrorBody, "description": "No such model"},
    "4XX": {"model": ErrorBody, "description": "Any other refusal"},
}


def is_openai_path(path: str) -> bool:
    """Whether a request to ``path`` comes from a client of OpenAI's API."""
    return any(path == prefix or path.startswith(prefix + "/") for prefix in PREFIXES)


def openai_refusal(status: int, message: str, field: str | None = None, code: str | None = None) -> JSONResponse:
    """Make the response to a request that is refused; wrong fields are 400 here, not 422."""
    status = 400 if status == 422 else status
    detail = ErrorDetail(message=message, param=field, code=code or CODES.get((status, field)))
    return JSONResponse(ErrorBody(error=detail).model_dump(), status)
