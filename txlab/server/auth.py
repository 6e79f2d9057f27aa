"""One API key per server, asked for on every request except the health check and the API's own documentation."""

from __future__ import annotations

import hmac
import secrets

from starlette.types import ASGIApp, Receive, Scope, Send

from txlab.server.errors import refusal

PREFIX = "tml-"  # the SDK refuses any other key before it sends a request
OPEN_PATHS = frozenset({"/api/v1/healthz", "/docs", "/openapi.json"})


def new_api_key() -> str:
    """Make a random key that the SDK accepts."""
    return PREFIX + secrets.token_urlsafe(24)


def check_api_key(key: str | None) -> str:
    """Return ``key`` if a server may be opened with it, else raise ValueError."""
    if not key or not key.startswith(PREFIX) or not key.isascii():
        raise ValueError(f"the API key must be ASCII text that starts with {PREFIX!r}, as the tinker SDK demands")
    return key


class ApiKeyRequired:
    """Lets a request through whose ``X-API-Key`` (or bearer token) is the server's key; answers 401 to others."""

    def __init__(self, app: ASGIApp, key: str):
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._has_key(scope):
            await self._app(scope, receive, send)
        else:
            message = "wrong or missing API key: set TINKER_API_KEY to the key that this server printed when it started"
            await refusal(401, message)(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(given, self._key)
