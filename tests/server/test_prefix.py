"""The path under which a proxy shows the server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from txlab.server.prefix import ForwardedPrefix


def root_path(prefix: bytes | None, kind: str = "http") -> str | None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope.get("root_path"))

    headers = [] if prefix is None else [(b"x-forwarded-prefix", prefix)]
    asyncio.run(ForwardedPrefix(app)({"type": kind, "headers": headers}, None, None))  # type: ignore[arg-type]
    return seen[0]


def test_it_becomes_the_root_path() -> None:
    assert root_path(b"/user/ann%40x/txlab/") == "/user/ann%40x/txlab"


@pytest.mark.parametrize("prefix", [None, b"", b"/", b"elsewhere", b"//evil.com", b"/a/'+alert(1)+'", b"/\xff"])
def test_anything_else_is_no_prefix(prefix: bytes | None) -> None:
    assert root_path(prefix) is None


def test_other_messages_pass() -> None:
    assert root_path(None, "lifespan") is None
