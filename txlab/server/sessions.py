"""Who is there: sessions of client programs, and the models and samplers that live and end with them.

All methods run on the server's event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from txlab.lora.state import LoraConfig
from txlab.server.errors import ApiError

STALL_SECONDS = 5.0  # a timer that is later than this says that the process, not the client, slept


@dataclass(frozen=True, slots=True)
class Model:
    """An adapter as the API names it: ``{session_id}:train:{n}``."""

    model_id: str
    session_id: str
    name: str
    lora: LoraConfig
    user_metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Sampler:
    """A sampling session, ``{session_id}:sample:{n}``. ``snapshot_id`` is None for the base model."""

    sampler_id: str
    session_id: str
    snapshot_id: str | None
    model_path: str | None = None


@dataclass(slots=True, eq=False)
class Session:
    """One client program."""

    session_id: str
    display_name: str | None
    last_seen: float
    models: dict[str, Model] = field(default_factory=dict)
    samplers: dict[str, Sampler] = field(default_factory=dict)

    def model_id(self, n: int) -> str:
        """Id of this session's model ``n``; clients compute it too."""
        return f"{self.session_id}:train:{n}"

    def sampler_id(self, n: int) -> str:
        """Id of this session's sampler ``n``."""
        return f"{self.session_id}:sample:{n}"

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


def session_of(identifier: str) -> str:
    """Return the session id that a model's or a sampler's id begins with."""
    return identifier.partition(":")[0]


class Sessions:
    """The sessions that are alive; one that is silent for ``silence_seconds`` ends by itself."""

    def __init__(self, silence_seconds: float, on_end: Callable[[Session], None]):
        self._silence_seconds = silence_seconds
        self._on_end = on_end
        self._sessions: dict[str, Session] = {}
        self._ended: dict[str, str] = {}  # session id -> why
        self._timer: asyncio.TimerHandle | None = None
        self._models_made = 0

    def create(self, display_name: str | None = None) -> Session:
        """Begin a session."""
        session = Session(secrets.token_hex(8), display_name, time.monotonic())
        self._sessions[session.session_id] = session
        if self._timer is None:
            self._sleep_until(session.last_seen + self._silence_seconds)
        return session

    def get(self, session_id: str) -> Session:
        """Find a living session and note that its client is there; ApiError where there is none."""
        session = self._sessions.get(session_id)
        if session is None:
            raise self._absent("session", session_id)
        session.last_seen = time.monotonic()
        return session

    def model(self, model_id: str) -> Model:
        """Find a model; ApiError where it or its session is gone."""
        session = self._sessions.get(session_of(model_id))
        if session is None or model_id not in session.models:
            raise self._absent("model", model_id)
        session.last_seen = time.monotonic()
        return session.models[model_id]

    def sampler(self, sampler_id: str) -> Sampler:
        """Find a sampler; ApiError where it or its session is gone."""
        session = self._sessions.get(session_of(sampler_id))
        if session is None or sampler_id not in session.samplers:
            raise self._absent("sampler", sampler_id)
        session.last_seen = time.monotonic()
        return session.samplers[sampler_id]

    def next_model_name(self, session: Session, user_metadata: dict[str, Any] | None) -> str:
        """Name an adapter for people: as the user's metadata says, else a count over all sessions."""
        number = self._models_made
        self._models_made += 1
        given = (user_metadata or {}).get("name")
        return str(given) if given else f"{session.display_name or ''} adapter {number}".strip()

    def end(self, session_id: str, why: str) -> None:
        """End a session and what belongs to it; the first reason stays."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._ended[session_id] = why
            self._on_end(session)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _absent(self, what: str, identifier: str) -> ApiError:
        ended = self._ended.get(session_of(identifier))
        if ended is None:
            return ApiError(404, f"{what} {identifier!r} does not exist on this server, or was unloaded")
        hint = "make a new ServiceClient and go on from a checkpoint"
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
                session.last_seen = now
        for session in list(self._sessions.values()):
            if session.last_seen + self._silence_seconds <= now:
                self.end(session.session_id, f"ended after {self._silence_seconds:g} s without a heartbeat")
        if self._sessions:
            self._sleep_until(min(session.last_seen for session in self._sessions.values()) + self._silence_seconds)
