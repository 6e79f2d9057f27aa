"""The registry of sessions, alone."""

from __future__ import annotations

import asyncio
import time

import pytest

from txlab.lora.state import LoraConfig
from txlab.server import sessions as module
from txlab.server.errors import ApiError
from txlab.server.sessions import Model, Sampler, Sessions


def test_a_stalled_process_ends_nobody(monkeypatch):
    """Heartbeats cannot arrive while the loop is held up, so silence then says nothing."""
    monkeypatch.setattr(module, "STALL_SECONDS", 0.1)
    ended = []

    async def main():
        sessions = Sessions(0.3, ended.append)
        session = sessions.create()
        time.sleep(0.6)
        await asyncio.sleep(0.01)
        assert not ended
        while not ended:
            await asyncio.sleep(0.01)
        assert ended == [session]
        sessions.close()

    asyncio.run(main())


def test_things_are_held_by_their_session_until_making_them_fails():
    async def main():
        sessions = Sessions(60, lambda session: None)
        session = sessions.create()
        model = Model(session.model_id(0), session.session_id, "a", LoraConfig())
        sampler = Sampler(session.sampler_id(0), session.session_id, None)
        with session.holding(model), session.holding(sampler):
            assert sessions.model(model.model_id) is model
        assert sessions.sampler(sampler.sampler_id) is sampler
        with pytest.raises(ZeroDivisionError), session.holding(model):
            1 / 0  # noqa: B018
        with pytest.raises(ApiError, match="does not exist"):
            sessions.model(model.model_id)
        sessions.close()

    asyncio.run(main())


def test_ids_have_the_form_that_clients_compute():
    async def main():
        sessions = Sessions(60, lambda session: None)
        session = sessions.create()
        assert "/" not in session.session_id
        assert ":" not in session.session_id
        assert session.model_id(3) == f"{session.session_id}:train:3"
        assert session.sampler_id(3) == f"{session.session_id}:sample:3"
        sessions.close()

    asyncio.run(main())
