"""The table of futures: what a request id stands for, in memory, until its result was fetched and a while longer.

All methods run on the server's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from txlab.engine.requests import RequestError
from txlab.server.completions import CompletionLog
from txlab.server.errors import ApiError
from txlab.server.wire.base import json_bytes
from txlab.store.checkpoints import CheckpointError

log = logging.getLogger(__name__)

REFUSALS = (RequestError, CheckpointError, ApiError)
Job = Callable[[], Coroutine[Any, Any, "Reply"]]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to retrieve_future, encoded once."""

    body: bytes
    media_type: str = "application/json"
    failed: bool = False


def json_reply(value: dict[str, Any]) -> Reply:
    """Make a JSON result."""
    return Reply(json_bytes(value))


def proto_reply(body: bytes) -> Reply:
    """Make a protobuf result."""
    return Reply(body, "application/x-protobuf")


def failure_reply(error: BaseException) -> Reply:
    """Make a failure as the SDK raises it at once; ``category`` says whose fault it is."""
    if isinstance(error, RequestError):
        message, category = str(error), error.category
    elif isinstance(error, REFUSALS):
        message, category = str(error), "user"
    else:
        message, category = f"internal error, see the server's log: {error!r}", "server"
    return Reply(json_bytes({"error": message, "category": category}), failed=True)


def size_reply(reply: Reply) -> Reply:
    """Announce a result's size, so that the client makes room before it asks for the result itself."""
    return json_reply({"status": "complete_metadata", "response_payload_size": len(reply.body)})


@dataclass(slots=True, eq=False)
class PendingResult:
    """One future. ``settled`` gets the reply; ``task`` is the work behind it; ``ends`` notes its end for a poller."""

    request_id: str
    key: Hashable
    settled: asyncio.Future[Reply]
    ends: CompletionLog | None = None
    task: asyncio.Task[None] | None = None
    touched: float = 0.0  # when it was settled, or last fetched


@dataclass(frozen=True, slots=True)
class Retention:
    """How long results stay: fetched ones for a retry after a lost response, others for a client that is slow."""

    fetched_seconds: float = 600.0
    fetched_bytes: int = 256 * 2**20
    unfetched_seconds: float = 3600.0


class FutureTable:
    """Starts each request once, holds its result, and lets clients wait for it."""

    def __init__(self, retention: Retention | None = None, clock: Callable[[], float] = time.monotonic):
        self._retention = retention or Retention()
        self._clock = clock
        self._by_key: dict[Hashable, PendingResult] = {}
        self._by_id: dict[str, PendingResult] = {}
        self._unfetched: OrderedDict[str, PendingResult] = OrderedDict()  # settled, oldest first
        self._fetched: OrderedDict[str, PendingResult] = OrderedDict()  # last fetched longest ago first
        self._fetched_bytes = 0

    def start(self, kind: str, key: Hashable, job: Job, ends: CompletionLog | None = None) -> str:
        """Run ``job`` for its reply and return the request id; a ``key`` seen before returns its first request id.

        The request's end is noted in ``ends``, if given.
        """
        known = self._by_key.get((kind, key))
        if known is not None:
            return known.request_id
        loop = asyncio.get_running_loop()
        pending = PendingResult(f"{kind}-{secrets.token_hex(8)}", (kind, key), loop.create_future(), ends)
        self._by_key[pending.key] = self._by_id[pending.request_id] = pending
        pending.task = loop.create_task(self._run(pending, job()))
        return pending.request_id

    def knows(self, kind: str, key: Hashable) -> bool:
        """Whether ``start`` with this key would return an earlier request."""
        return (kind, key) in self._by_key

    async def wait(self, request_id: str, seconds: float, most_bytes: float = math.inf) -> Reply | None:
        """Wait for a reply, None where it takes longer. ApiError for an id that is not (any more) in the table.

        In the place of a result of more than ``most_bytes`` its size is told, which does not count as fetched.
        """
        pending = self._by_id.get(request_id)
        if pending is None:
            # 410 makes the SDK sample again; a training request must not run twice.
            status = 410 if request_id.startswith("asample-") else 404
            hint = "if its lab was stopped since, make a new ServiceClient and go on from a checkpoint"
            raise ApiError(status, f"no result is kept for {request_id!r}; {hint}")
        if not pending.settled.done():
            await asyncio.wait((pending.settled,), timeout=seconds)
        if not pending.settled.done():
            return None
        reply = pending.settled.result()
        if len(reply.body) > most_bytes:
            return size_reply(reply)
        self._note_fetched(pending)
        return reply

    def cancel(self, request_id: str) -> None:
        """Stop a sampling request, which then has failed; no effect on one that has ended. ApiError for other kinds."""
        if not request_id.startswith("asample-"):
            raise ApiError(400, f"{request_id!r} is no sampling request: only those can be cancelled")
        pending = self._by_id.get(request_id)
        if pending is not None:
            self._stop([pending], RequestError("the request was cancelled by its client"))

    def cancel_all(self, ends: Collection[CompletionLog]) -> None:
        """Stop the requests whose ends would be noted in one of ``ends``."""
        requests = [pending for pending in self._by_id.values() if pending.ends in ends]
        self._stop(requests, RequestError("the session of this request has ended"))

    def free(self, request_ids: Collection[str], ends: CompletionLog) -> None:
        """Forget results that their client has; ids that are not noted in ``ends``, or have not ended, stay."""
        for request_id in request_ids:
            pending = self._by_id.get(request_id)
            if pending is not None and pending.ends is ends and pending.task is None:
                if self._fetched.pop(request_id, None) is not None:
                    self._fetched_bytes -= len(pending.settled.result().body)
                self._unfetched.pop(request_id, None)
                self._forget(pending)

    def close(self) -> None:
        """Fail what is not finished, so that waiting clients are answered."""
        message = "the server was stopped: when it runs again, make a new ServiceClient and go on from a checkpoint"
        self._stop(list(self._by_id.values()), RequestError(message, "server"))

    def _stop(self, requests: Iterable[PendingResult], error: RequestError) -> None:
        for pending in requests:
            if pending.task is not None:
                pending.task.cancel()
                self._settle(pending, failure_reply(error))

    async def _run(self, pending: PendingResult, job: Coroutine[Any, Any, Reply]) -> None:
        try:
            reply = await job
        except Exception as error:
            if not isinstance(error, REFUSALS):
                log.exception("request %s failed", pending.request_id)
            reply = failure_reply(error)
        self._settle(pending, reply)

    def _settle(self, pending: PendingResult, reply: Reply) -> None:
        pending.task = None
        pending.touched = self._clock()
        pending.settled.set_result(reply)
        if pending.ends is not None:
            pending.ends.add(pending.request_id, failed=reply.failed, size=len(reply.body))
        self._unfetched[pending.request_id] = pending
        self._trim()

    def _note_fetched(self, pending: PendingResult) -> None:
        if self._unfetched.pop(pending.request_id, None) is not None:
            self._fetched_bytes += len(pending.settled.result().body)
        elif pending.request_id not in self._fetched:
            return  # dropped while its last reader was being woken
        pending.touched = self._clock()
        self._fetched[pending.request_id] = pending
        self._fetched.move_to_end(pending.request_id)
        self._trim()

    def _trim(self) -> None:
        now, keep = self._clock(), self._retention
        while self._fetched:
            oldest = next(iter(self._fetched.values()))
            if now - oldest.touched <= keep.fetched_seconds and self._fetched_bytes <= keep.fetched_bytes:
                break
            self._fetched_bytes -= len(oldest.settled.result().body)
            self._forget(self._fetched.popitem(last=False)[1])
        while self._unfetched and now - next(iter(self._unfetched.values())).touched > keep.unfetched_seconds:
            self._forget(self._unfetched.popitem(last=False)[1])

    def _forget(self, pending: PendingResult) -> None:
        del self._by_key[pending.key], self._by_id[pending.request_id]
        if pending.ends is not None:
            pending.ends.drop(pending.request_id)
