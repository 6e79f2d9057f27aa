"""The registry of sessions, alone."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC

import pytest

from txlab.lora.state import LoraConfig
from txlab.server import sessions as module
from txlab.server.errors import ApiError
from txlab.server.sessions import Model, Sampler, Session, Sessions


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


def test_a_session_tells_of_itself_and_of_its_end():
    ended = []

    async def main():
        sessions = Sessions(60, ended.append)
        about = {"tags": ("a",), "user_metadata": {"k": 1}, "project_id": "p", "sdk_version": "0.38.0"}
        session = sessions.create("mine", **about)
        assert {name: getattr(session, name) for name in about} == about
        assert session.status == "active"
        assert session.created_at.tzinfo is session.last_seen.tzinfo is UTC
        before = session.last_seen
        sessions.get(session.session_id)
        assert session.last_seen > before
        sessions.end(session.session_id, "errored", "a stack")
        sessions.end(session.session_id, "success")
        sessions.end("nobody", "success")
        assert ended == [session]
        assert (session.status, session.detail) == ("errored", "a stack")
        with pytest.raises(ApiError, match=r"was finished by its client \(errored\)") as caught:
            sessions.get(session.session_id)
        assert caught.value.status == 400
        sessions.close()

    asyncio.run(main())


def test_a_silent_session_has_expired():
    async def main():
        ended = asyncio.Event()
        sessions = Sessions(0.05, lambda session: ended.set())
        session = sessions.create()
        await asyncio.wait_for(ended.wait(), 10)
        assert session.status == "expired"
        sessions.close()

    asyncio.run(main())


def test_the_end_of_a_session_wakes_its_pollers():
    async def main():
        sessions = Sessions(60, lambda session: None)
        session = sessions.create()
        sampler = session.samplers["s"] = Sampler("s", session.session_id, None)
        waiting = asyncio.create_task(sampler.log_of(0).after(0, 60))
        await asyncio.sleep(0)
        sessions.end(session.session_id, "success")
        assert await asyncio.wait_for(waiting, 10) == []
        sessions.close()

    asyncio.run(main())


def test_a_sampler_is_made_once_also_where_its_first_asker_goes():
    async def main():
        session, made, gate = Session("s"), [], asyncio.Event()

        async def make():
            made.append(1)
            await gate.wait()
            return Sampler("s:sample:0", "s", None)

        first = asyncio.create_task(session.make("s:sample:0", make))
        second = asyncio.create_task(session.make("s:sample:0", make))
        await asyncio.sleep(0)
        assert session.makes("s:sample:0")
        assert not session.makes("s:sample:1")
        first.cancel()
        gate.set()
        sampler = await second
        assert await session.make("s:sample:0", make) is sampler
        assert len(made) == 1

    asyncio.run(main())


def test_publishing_moves_followers_and_names_what_is_outdated():
    session = Session("s")
    old, new, frozen, other = (Sampler(name, "s", name) for name in ("old", "new", "frozen", "other"))
    session.samplers = {sampler.sampler_id: sampler for sampler in (old, new, frozen, other)}
    assert session.publish(old, "m") == session.publish(other, "another") == set()
    assert session.publish(new, "m") == {"old"}
    assert [sampler.snapshot_id for sampler in (old, new, frozen, other)] == ["new", "new", "frozen", "other"]
    assert session.snapshots == {"new", "frozen", "other"}


def test_clients_of_a_sampler_have_numbers_and_logs_of_their_own():
    sampler = Sampler("s", "s", None)
    assert [sampler.join(), sampler.join()] == [1, 2]
    assert sampler.log_of(0) is sampler.log_of(0) is not sampler.log_of(1)
