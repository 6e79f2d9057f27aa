"""What the routes share: the engine, the checkpoints, who is there and what is awaited."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request

from txlab.config import ServerSettings
from txlab.engine import requests
from txlab.engine.requests import CancelSample, DropSnapshot, Half, Result, Sample, SkipSeq, UnloadAdapter
from txlab.server.auth import Credentials, check_api_key
from txlab.server.completions import CompletionLog
from txlab.server.errors import ApiError
from txlab.server.expiry import ExpirySweep
from txlab.server.futures import FutureTable, Job
from txlab.server.recording import Recorder
from txlab.server.sessions import Session, Sessions
from txlab.server.wire.futures import UntypedFuture
from txlab.store.store import Store
from txlab.threads import hide_from_debugger

if TYPE_CHECKING:
    from txlab.engine.engine import Engine

T = TypeVar("T")

INLINE_BYTES = 32 * 1024  # what is decoded or encoded on the loop: under 5 ms even where every datum is tiny


class ServerState:
    """One server. Everything but the engine's callbacks runs on its event loop."""

    def __init__(self, engine: Engine, store: Store, settings: ServerSettings):
        self.credentials = Credentials(check_api_key(settings.api_key), settings.token_seconds)
        self.engine = engine
        self.checkpoints = store.checkpoints
        self.checkpoint_index = store.checkpoint_index
        self.records = store.records
        self.recorder = Recorder(store.records, engine.base.name)
        self.settings = settings
        self.futures = FutureTable()
        self.expiry = ExpirySweep(lambda: self.in_worker(self.checkpoints.tidy))
        self.sessions = Sessions(settings.session_seconds, self._release)
        self._workers = ThreadPoolExecutor(2, "txlab-server", initializer=_hide_this_thread)

    def start(
        self, kind: str, key: Hashable, job: Job, *, ends: CompletionLog | None = None, **fields: Any
    ) -> UntypedFuture:
        """Answer with a future for what ``job`` returns; the same key never runs twice."""
        return UntypedFuture(request_id=self.futures.start(kind, key, job, ends), **fields)

    async def ask(self, request: requests.Request, owner_id: str | None = None) -> Result:
        """Submit to the engine and await the result; RequestError where it fails.

        Submits before it gives way to other tasks. A sample stops where the awaiting task is cancelled. ``owner_id``
        is the model or sampler that it is for, where the request does not say.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        started = time.perf_counter()

        def record(result: Result | Exception) -> None:
            owner = owner_id or getattr(request, "model_id", None)
            self.recorder.served(request, owner, time.perf_counter() - started, result)

        def done(result: Result | Exception) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, answer, result)

        self.engine.submit(request, done)
        try:
            result = await answer
        except asyncio.CancelledError:
            if isinstance(request, Sample):
                self.tell(CancelSample(request))
            raise
        except Exception as error:
            record(error)
            raise
        record(result)
        return result

    @contextmanager
    def turn(self, model_id: str, seq_id: int, half: Half | None = None) -> Iterator[None]:
        """Prepare the request at ``seq_id``: where that fails, the seq_id is used up, so that later ones may run.

        ``half`` says that it is a pass with a gradient or an optimizer step: the other half must not run without it.
        """
        try:
            yield
        except BaseException as error:
            self.tell(SkipSeq(model_id, seq_id, half, str(error)))
            raise

    def tell(self, request: requests.Request) -> None:
        """Submit to the engine; nobody waits for the result."""
        self.engine.submit(request, lambda result: None)

    async def in_worker(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run what blocks, or computes for long, in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, lambda: function(*args, **kwargs))

    async def convert(self, size: int, function: Callable[..., T], *args: Any) -> T:
        """Decode or encode about ``size`` bytes: here where they are few, else in a worker thread."""
        return function(*args) if size < INLINE_BYTES else await self.in_worker(function, *args)

    def check_base_model(self, name: str) -> None:
        """Refuse a base model that is not served."""
        if name != self.engine.base.name:
            raise ApiError(404, f"model {name!r} is not served here; this server has {self.engine.base.name!r}")

    def close(self) -> None:
        """Answer whoever waits, and stop. The engine is the caller's."""
        self.sessions.close()
        self.expiry.close()
        self.futures.close()
        self._workers.shutdown(wait=False)

    def _release(self, session: Session) -> None:
        """Stop an ended session's samples, and free what it held on the device."""
        self.recorder.ended(session)
        self.futures.cancel_all([log for sampler in session.samplers.values() for log in sampler.logs.values()])
        for model_id in session.models:
            self.tell(UnloadAdapter(model_id))
        for snapshot_id in session.snapshots:
            self.tell(DropSnapshot(snapshot_id))
        for loss_id in session.losses:
            self.engine.losses.remove(loss_id)


def _settle(answer: asyncio.Future[Result], result: Result | Exception) -> None:
    if answer.done():  # its task was cancelled
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _hide_this_thread() -> None:
    hide_from_debugger(threading.current_thread())


async def _state(request: Request) -> ServerState:
    return request.app.state.server


Server = Annotated[ServerState, Depends(_state)]
