"""The SDK of a client, by its version: one that is too old to be served is told so in its first call.

Up to 0.24 the SDK sends passes as JSON, and reads other results than those of today.
"""

from __future__ import annotations

import re

from fastapi import Request

from txlab.server.errors import ApiError

OLDEST = (0, 25)
NEEDED = f"this server needs tinker >= {OLDEST[0]}.{OLDEST[1]}: pip install --upgrade tinker"

USER_AGENT = re.compile(r"(?:Async)?Tinker/Python (\S+)")
MAJOR_MINOR = re.compile(r"(\d+)\.(\d+)")


def check_version(version: str | None) -> None:
    """Refuse an SDK older than `OLDEST`; a version that is absent, or no number, says nothing against its client."""
    numbers = MAJOR_MINOR.match(version or "")
    if numbers and tuple(map(int, numbers.groups())) < OLDEST:
        raise ApiError(400, f"this client is tinker {version}, and {NEEDED}")


async def check_user_agent(request: Request) -> None:
    """Refuse a request of an SDK that is too old; every SDK names its version in each of its requests."""
    if found := USER_AGENT.match(request.headers.get("user-agent", "")):
        check_version(found[1])
