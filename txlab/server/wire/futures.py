"""Results, asked for by request id."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from txlab.server.wire.base import SAMPLER, WireModel, example


class UntypedFuture(WireModel):
    """Where a result can be asked for."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class RetrieveFuture(WireModel):
    """Ask for a result."""

    model_config = example(request_id="asample-1f0c3a5e7d92b846", allow_metadata_only=True)

    request_id: str
    allow_metadata_only: Annotated[
        bool, Field(description="Of a large result, its size may be answered: the client asks again when it has room.")
    ] = False


class CancelFuture(WireModel):
    """Stop a request whose result nobody waits for any more."""

    model_config = example(request_id="asample-1f0c3a5e7d92b846")

    request_id: str


class SamplingTarget(WireModel):
    """One client of a sampler."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: Annotated[
        int, Field(ge=0, description="The billion that the client's request numbers begin with.")
    ] = 0


class RetrieveFutures(WireModel):
    """Ask which requests of one client have ended."""

    model_config = example(
        target={"type": "sampling_session", "sampling_session_id": SAMPLER, "cloned_sampler_id": 0},
        prev_cursor=0,
        timeout=30,
    )

    target: SamplingTarget
    prev_cursor: Annotated[
        int, Field(ge=0, description="The cursor of the answer before: what ended up to it is forgotten.")
    ] = 0
    timeout: Annotated[
        float | None,
        Field(ge=0, description="Longest wait in seconds; 0 answers at once, none is as the server likes."),
    ] = None
    retrieved_request_ids: Annotated[
        list[str], Field(description="Requests whose results the client has: the server forgets them.")
    ] = []


class FutureCompletion(WireModel):
    """A request that has ended; its result or its failure is there for ``retrieve_future``."""

    state: Literal["finished", "failed"]
    request_id: str
    response_payload_uncompressed_size: Annotated[
        int | None, Field(description="Size of the result in bytes; none of a failure.")
    ] = None


class RetrievedFutures(WireModel):
    """What ended since the cursor that was given, oldest first."""

    completions: list[FutureCompletion]
    cursor: Annotated[int, Field(description="To be sent as ``prev_cursor`` of the next poll.")]
