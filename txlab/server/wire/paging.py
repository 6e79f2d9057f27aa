"""Lists that come page by page."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query

from txlab.server.wire.base import WireModel

Limit = Annotated[int, Query(ge=1, le=1000, description="The most that one page holds.")]
Offset = Annotated[int, Query(ge=0, le=2**63 - 1, description="How many to skip: those of the pages before.")]
AccessScope = Annotated[
    Literal["owned", "accessible"],
    Query(description="Whose to show. A server has one owner, so both show all."),
]


class Cursor(WireModel):
    """Which part of a list a page is."""

    offset: int
    limit: int
    total_count: int
