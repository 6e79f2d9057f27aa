"""One API key per server, or a token made of it, asked for on every request but the health check and the documentation.

A token is a JSON Web Token (RFC 7519) that expires; it is signed with a secret drawn from the key, so that the server
keeps no list of tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

import jwt
from starlette.types import ASGIApp, Receive, Scope, Send

from txlab.server.errors import refusal
from txlab.server.links import is_signed, sign

PREFIX = "tml-"  # the SDK refuses any other key before it sends a request
TOKEN_PREFIX = b"eyJ"  # every JSON Web Token: its header begins with {"
OPEN_PATHS = frozenset({"/api/v1/healthz", "/docs", "/openapi.json"})

# Who the SDK's whoami() finds: one server has one key, and knows no names.
ORGANIZATION = "local"
EMAIL = "user@localhost"
ISSUER = "passport-local"
USER = "tml:user:local"


def new_api_key() -> str:
    """Make a random key that the SDK accepts."""
    return PREFIX + secrets.token_urlsafe(24)


def check_api_key(key: str | None) -> str:
    """Return ``key`` if a server may be opened with it, else raise ValueError."""
    if not key or not key.startswith(PREFIX) or not key.isascii():
        raise ValueError(f"the API key must be ASCII text that starts with {PREFIX!r}, as the tinker SDK demands")
    return key


def credential(scope: Scope) -> bytes:
    """Return what a request shows: its ``X-API-Key``, else its bearer token, else nothing."""
    headers = dict(scope["headers"])
    return headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")


class Credentials:
    """The key of a server, and the tokens that stand for it for ``token_seconds``."""

    def __init__(self, key: str, token_seconds: float):
        self._key = key.encode()
        self._secret = hashlib.sha256(b"txlab token\0" + self._key).digest()
        self._token_seconds = token_seconds

    @property
    def key_id(self) -> int:
        """A number that tells keys apart and says nothing of the key."""
        return int.from_bytes(hashlib.sha256(b"txlab key id\0" + self._key).digest()[:4])

    def accepts(self, given: bytes) -> bool:
        """Whether ``given`` is the key, or a token of it that has not expired. Keys compare in constant time."""
        return hmac.compare_digest(given, self._key) or self._is_token(given)

    def exchange(self, given: bytes) -> str:
        """Return a token for the key, or the token that was given itself."""
        if given.startswith(TOKEN_PREFIX):
            return given.decode()
        now = time.time()
        claims = {"sub": USER, "org_id": ORGANIZATION, "email": EMAIL, "iss": ISSUER}
        return jwt.encode(claims | {"iat": now, "exp": now + self._token_seconds}, self._secret, algorithm="HS256")

    def link(self, path: str) -> str:
        """Return the path and query of a link to ``path`` that is fetched without a key, for an hour."""
        return sign(path, self._secret)

    def accepts_link(self, scope: Scope) -> bool:
        """Whether a request is for such a link."""
        return scope["method"] == "GET" and is_signed(scope["path"], scope["query_string"], self._secret)

    def _is_token(self, given: bytes) -> bool:
        if not given.startswith(TOKEN_PREFIX):
            return False
        try:
            jwt.decode(given, self._secret, algorithms=["HS256"], issuer=ISSUER, options={"require": ["exp", "iat"]})
        except jwt.InvalidTokenError:
            return False
        return True


class ApiKeyRequired:
    """Lets a request through that shows the server's key or a token of it, or is for a link that the server signed.

    Answers 401 to others.
    """

    def __init__(self, app: ASGIApp, credentials: Credentials):
        self._app = app
        self._credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        is_open = scope["type"] != "http" or scope["path"] in OPEN_PATHS
        if is_open or self._credentials.accepts(credential(scope)) or self._credentials.accepts_link(scope):
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 401. Of a token it says that a new one is to be had for the key (RFC 6750): the SDK gets one by itself."""
    if credential(scope).startswith(TOKEN_PREFIX):
        message = "this token has expired, or is not of this server: exchange the API key for a new one"
        response = refusal(scope["path"], 401, message)
        response.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    else:
        message = (
            "wrong or missing API key: TINKER_API_KEY is what `txlab key` prints on the machine of this lab. "
            "A client of a lab that was stopped here before is lost: make a new ServiceClient"
        )
        response = refusal(scope["path"], 401, message)
    await response(scope, receive, send)
