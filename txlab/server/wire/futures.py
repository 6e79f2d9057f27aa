"""Results, asked for by request id."""

from __future__ import annotations

from txlab.server.wire.base import WireModel


class UntypedFuture(WireModel):
    """Where a result can be asked for."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class RetrieveFuture(WireModel):
    """Ask for a result."""

    request_id: str
