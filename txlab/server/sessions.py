"""Who is there: sessions of client programs, and the models and samplers that live and end with them.

All methods run on the server's event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, Literal

from txlab.lora.state import LoraConfig
from txlab.server.completions import CompletionLog
from txlab.server.errors import ApiError

STALL_SECONDS = 5.0  # a timer that is later than this says that the process, not the client, slept

SEQ_IDS_PER_CLIENT = 10**9  # clients that share a sampler count from n, n + 10⁹, n + 2·10⁹, …
SessionStatus = Literal["active", "success", "errored", "interrupted", "expired"]


@dataclass(frozen=True, slots=True)
class Model:
    """An adapter as the API names it: ``{session_id}:train:{n}``."""

    model_id: str
    session_id: str
    name: str
    lora: LoraConfig
    user_metadata: dict[str, Any] | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(slots=True, eq=False)
class Sampler:
    """A sampling session, ``{session_id}:sample:{n}``."""

    sampler_id: str
    session_id: str
    snapshot_id: str | None  # None: the base model. Read it when a sample is submitted: inflight weights move on
    model_path: str | None = None
    inflight_of: str | None = None  # the model whose newest published weights it draws with
    clients: int = 1  # programs that share it, the first one included
    logs: dict[int, CompletionLog] = field(default_factory=dict)  # by client

    def join(self) -> int:
        """Return the number of one more client, which numbers its requests from that many billions on."""
        self.clients += 1
        return self.clients - 1

    def log_of(self, client: int) -> CompletionLog:
        """What has ended among one client's requests."""
        return self.logs.setdefault(client, CompletionLog())


@dataclass(slots=True, eq=False)
class Session:
    """One client program, and what it said of itself when it began."""

    session_id: str
    display_name: str | None = None
    tags: tuple[str, ...] = ()
    user_metadata: Mapping[str, Any] | None = None
    project_id: str | None = None
    sdk_version: str | None = None
    status: SessionStatus = "active"
    detail: str | None = None  # what its client said when it finished
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_seen: datetime = field(default_factory=lambda: datetime.now(UTC))
    alive_at: float = field(default_factory=time.monotonic)  # the clock that silence is measured with
    models: dict[str, Model] = field(default_factory=dict)
    samplers: dict[str, Sampler] = field(default_factory=dict)
    losses: set[str] = field(default_factory=set)  # ids of those that it uploaded
    _making: dict[str, asyncio.Task[Sampler]] = field(default_factory=dict, init=False)

    def touch(self) -> None:
        """Note that the client is there."""
        self.alive_at, self.last_seen = time.monotonic(), datetime.now(UTC)

    def model_id(self, n: int) -> str:
        """Id of this session's model ``n``; clients compute it too."""
        return f"{self.session_id}:train:{n}"

    def sampler_id(self, n: int) -> str:
        """Id of this session's sampler ``n``."""
        return f"{self.session_id}:sample:{n}"

    def loss_id(self, n: int) -> str:
        """Id of the loss ``n`` that this session uploaded."""
        return f"{self.session_id}:loss:{n}"

    @contextmanager
    def holding(self, thing: Model | Sampler) -> Iterator[None]:
        """Keep a model or sampler while it is made, so that it ends with the session; let go of it if that fails."""
        owner: dict[str, Any] = self.models if isinstance(thing, Model) else self.samplers
        key = thing.model_id if isinstance(thing, Model) else thing.sampler_id
        owner[key] = thing
        try:
            yield
        except BaseException:
            owner.pop(key, None)
            raise

    def makes(self, sampler_id: str) -> bool:
        """Whether such a sampler was made before, is being made, or failed to be."""
        return sampler_id in self._making

    async def make(self, sampler_id: str, maker: Callable[[], Coroutine[Any, Any, Sampler]]) -> Sampler:
        """Make a sampler once: whoever asks again under its id gets the same one, or the same failure."""
        if sampler_id not in self._making:
            self._making[sampler_id] = asyncio.create_task(maker())
        return await asyncio.shield(self._making[sampler_id])

    def publish(self, sampler: Sampler, model_id: str) -> set[str]:
        """Let all inflight samplers of a model draw with the weights of ``sampler``, the newest of them.

        Returns the snapshots that no sampler draws with any more.
        """
        followers = [other for other in self.samplers.values() if other.inflight_of == model_id]
        outdated = {other.snapshot_id for other in followers if other.snapshot_id is not None}
        sampler.inflight_of = model_id
        for other in followers:
            other.snapshot_id = sampler.snapshot_id
        return outdated

    @property
    def snapshots(self) -> set[str]:
        """The snapshots that its samplers draw with."""
        return {sampler.snapshot_id for sampler in self.samplers.values() if sampler.snapshot_id is not None}


def session_of(identifier: str) -> str:
    """Return the session id that a model's or a sampler's id begins with."""
    return identifier.partition(":")[0]


class Sessions:
    """The sessions that are alive; one that is silent for ``silence_seconds`` ends by itself.

    ``on_end`` gets a session that has ended, its status set, with the models and samplers that it still held.
    """

    def __init__(self, silence_seconds: float, on_end: Callable[[Session], None]):
        self._silence_seconds = silence_seconds
        self._on_end = on_end
        self._sessions: dict[str, Session] = {}
        self._ended: dict[str, str] = {}  # session id -> why
        self._timer: asyncio.TimerHandle | None = None
        self._models_made = 0

    def create(self, display_name: str | None = None, **about: Any) -> Session:
        """Begin a session; ``about`` sets its tags, user_metadata, project_id and sdk_version."""
        session = Session(secrets.token_hex(8), display_name, **about)
        self._sessions[session.session_id] = session
        if self._timer is None:
            self._sleep_until(session.alive_at + self._silence_seconds)
        return session

    def get(self, session_id: str) -> Session:
        """Find a living session and note that its client is there; ApiError where there is none."""
        session = self._sessions.get(session_id)
        if session is None:
            raise self._absent("session", session_id)
        session.touch()
        return session

    def model(self, model_id: str) -> Model:
        """Find a model; ApiError where it or its session is gone."""
        session = self._sessions.get(session_of(model_id))
        if session is None or model_id not in session.models:
            raise self._absent("model", model_id)
        session.touch()
        return session.models[model_id]

    def sampler(self, sampler_id: str) -> Sampler:
        """Find a sampler; ApiError where it or its session is gone."""
        session = self._sessions.get(session_of(sampler_id))
        if session is None or sampler_id not in session.samplers:
            raise self._absent("sampler", sampler_id)
        session.touch()
        return session.samplers[sampler_id]

    def live_models(self) -> list[Model]:
        """All models of all sessions, the newest first."""
        models = (model for session in self._sessions.values() for model in session.models.values())
        return sorted(models, key=lambda model: model.created_at, reverse=True)

    def next_model_name(
        self, session: Session, user_metadata: dict[str, Any] | None, proposed: str | None = None
    ) -> str:
        """Name an adapter for people: as the user's metadata says, else as ``proposed``, numbered where that is taken.

        Where nothing is proposed it is a count over all sessions.
        """
        number = self._models_made
        self._models_made += 1
        given = (user_metadata or {}).get("name")
        if given:
            return str(given)
        if proposed is None:
            return f"{session.display_name or ''} adapter {number}".strip()
        taken = {model.name for model in self.live_models()}
        names = (proposed if copy == 1 else f"{proposed} ({copy})" for copy in count(1))
        return next(name for name in names if name not in taken)

    def end(self, session_id: str, status: SessionStatus, detail: str | None = None) -> None:
        """End a session and what belongs to it; the first reason stays, and an id that is not alive is no error."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        session.status, session.detail = status, detail
        silent = f"ended after {self._silence_seconds:g} s without a heartbeat"
        self._ended[session_id] = silent if status == "expired" else f"was finished by its client ({status})"
        for sampler in session.samplers.values():
            for log in sampler.logs.values():
                log.wake()
        self._on_end(session)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _absent(self, what: str, identifier: str) -> ApiError:
        session_id = session_of(identifier)
        hint = "make a new ServiceClient and go on from a checkpoint"
        ended = self._ended.get(session_id)
        if ended is None:
            gone = "or was unloaded" if session_id in self._sessions else f"or its lab was stopped since: {hint}"
            return ApiError(404, f"{what} {identifier!r} does not exist on this server, {gone}")
        return ApiError(400, f"{what} {identifier!r}: its session {ended}; {hint}")

    def _sleep_until(self, deadline: float) -> None:
        delay = max(0.0, deadline - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._end_silent, time.monotonic() + delay)

    def _end_silent(self, due: float) -> None:
        """End sessions whose time is over, and sleep until the next one's."""
        self._timer = None
        now = time.monotonic()
        if now - due > STALL_SECONDS:  # heartbeats could not arrive either: everybody gets one more period
            for session in self._sessions.values():
                session.alive_at = now
        for session in list(self._sessions.values()):
            if session.alive_at + self._silence_seconds <= now:
                self.end(session.session_id, "expired")
        if self._sessions:
            self._sleep_until(min(session.alive_at for session in self._sessions.values()) + self._silence_seconds)
