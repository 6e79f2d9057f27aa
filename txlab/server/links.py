"""Links that need no API key: a path, the time until which it may be fetched, and a signature over both."""

from __future__ import annotations

import hashlib
import hmac
import time
from urllib.parse import parse_qs, quote, urlencode

LINK_SECONDS = 3600


def sign(path: str, key: bytes, seconds: float = LINK_SECONDS) -> str:
    """Make the path and query of a link to ``path`` (not percent-encoded) that is good for ``seconds``."""
    expires = str(int(time.time() + seconds))
    return f"{quote(path)}?{urlencode({'expires': expires, 'signature': _signature(path, expires, key)})}"


def is_signed(path: str, query: bytes, key: bytes) -> bool:
    """Whether the ``query`` of a request for ``path`` is one that ``sign`` made, and still good."""
    fields = parse_qs(query.decode("latin-1"))
    expires, signature = (fields.get(name, [""])[0] for name in ("expires", "signature"))
    wanted = _signature(path, expires, key).encode()
    return hmac.compare_digest(wanted, signature.encode()) and time.time() < int(expires)


def _signature(path: str, expires: str, key: bytes) -> str:
    return hmac.new(key, f"{expires}\n{path}".encode(), hashlib.sha256).hexdigest()
