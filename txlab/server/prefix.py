"""The path under which a proxy shows the server."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_PATH = re.compile(r"(/[\w.~%@+-]+)+", re.ASCII)


class ForwardedPrefix:
    """Takes a proxy's ``X-Forwarded-Prefix`` for the root path, so that links to the server work outside too."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            prefix = dict(scope["headers"]).get(b"x-forwarded-prefix", b"").decode("latin-1").rstrip("/")
            if _PATH.fullmatch(prefix):
                scope = {**scope, "root_path": prefix}
        await self._app(scope, receive, send)
