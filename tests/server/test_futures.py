"""The table of futures, alone."""

from __future__ import annotations

import asyncio
import json

import pytest

from txlab.engine.requests import RequestError
from txlab.server.completions import CompletionLog
from txlab.server.errors import ApiError
from txlab.server.futures import FutureTable, Reply, Retention, failure_reply, json_reply
from txlab.store.checkpoints import CheckpointError


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def job_of(*replies):
    """A job that counts its runs and returns the replies in turn."""
    runs = []

    async def job():
        runs.append(1)
        return replies[len(runs) - 1]

    return job, runs


def test_same_key_runs_once_and_has_one_id():
    async def main():
        table = FutureTable()
        job, runs = job_of(Reply(b"1"), Reply(b"2"))
        first, again, other = table.start("a", 1, job), table.start("a", 1, job), table.start("b", 1, job)
        assert first == again != other
        assert await table.wait(first, 1) == await table.wait(again, 1) == Reply(b"1")
        assert await table.wait(other, 1) == Reply(b"2")
        assert len(runs) == 2
        assert table.start("a", 1, job) == first

    asyncio.run(main())


def test_wait_gives_up_and_can_be_repeated():
    async def main():
        table, gate = FutureTable(), asyncio.Event()

        async def job():
            await gate.wait()
            return Reply(b"late")

        request_id = table.start("a", 1, job)
        assert await table.wait(request_id, 0.01) is None
        waiting = [asyncio.create_task(table.wait(request_id, 5)) for _ in range(2)]
        gate.set()
        assert await asyncio.gather(*waiting) == [Reply(b"late")] * 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (RequestError("no", "user"), "user"),
        (RequestError("no", "server"), "server"),
        (CheckpointError("no"), "user"),
        (ApiError(404, "no"), "user"),
        (KeyError("no"), "server"),
    ],
)
def test_failures_become_replies(error, category):
    async def main():
        table = FutureTable()

        async def job():
            raise error

        reply = await table.wait(table.start("a", 1, job), 1)
        body = json.loads(reply.body)
        assert body["category"] == category
        assert "no" in body["error"]
        assert reply == failure_reply(error)

    asyncio.run(main())


def test_json_reply_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="JSON"):
        json_reply({"loss": float("nan")})


@pytest.mark.parametrize(("kind", "status"), [("training", 404), ("asample", 410)])
def test_forgotten_and_unknown_ids(kind, status):
    async def main():
        with pytest.raises(ApiError) as caught:
            await FutureTable().wait(f"{kind}-0123", 1)
        assert caught.value.status == status

    asyncio.run(main())


def test_fetched_results_go_after_a_while_and_free_their_key():
    async def main():
        clock = Clock()
        table = FutureTable(Retention(fetched_seconds=10), clock)
        job, runs = job_of(Reply(b"1"), Reply(b"2"), Reply(b"3"))
        first = table.start("a", 1, job)
        await table.wait(first, 1)
        clock.now = 9
        await table.wait(first, 1)  # fetched again: the time starts anew
        clock.now = 18
        await table.wait(table.start("a", 2, job), 1)
        assert await table.wait(first, 1) == Reply(b"1")
        clock.now = 40
        await table.wait(table.start("a", 3, job), 1)
        with pytest.raises(ApiError):
            await table.wait(first, 1)
        assert len(runs) == 3

    asyncio.run(main())


def test_fetched_results_are_bounded_in_bytes_but_unfetched_ones_stay():
    async def main():
        table = FutureTable(Retention(fetched_bytes=100))
        job, _ = job_of(*(Reply(bytes(60)) for _ in range(4)))
        ids = [table.start("a", n, job) for n in range(4)]
        await table.wait(ids[0], 1)
        await table.wait(ids[1], 1)
        with pytest.raises(ApiError):
            await table.wait(ids[0], 1)
        assert len((await table.wait(ids[3], 1)).body) == 60
        assert len((await table.wait(ids[2], 1)).body) == 60

    asyncio.run(main())


def test_results_nobody_asks_for_go_in_the_end():
    async def main():
        clock = Clock()
        table = FutureTable(Retention(unfetched_seconds=100), clock)
        job, _ = job_of(Reply(b"1"), Reply(b"2"))
        lost = table.start("a", 1, job)
        await asyncio.sleep(0)
        clock.now = 101
        await table.wait(table.start("a", 2, job), 1)
        with pytest.raises(ApiError):
            await table.wait(lost, 1)

    asyncio.run(main())


def test_close_answers_whoever_waits():
    async def main():
        table = FutureTable()

        async def job():
            await asyncio.Event().wait()

        waiting = asyncio.create_task(table.wait(table.start("a", 1, job), 30))
        await asyncio.sleep(0)
        table.close()
        table.close()  # once by the host, once at the end of the app's life
        told = json.loads((await waiting).body)
        assert told["category"] == "server"
        assert "the server was stopped" in told["error"]
        assert "make a new ServiceClient" in told["error"]

    asyncio.run(main())


# ------------------------------------------------------------------------------ cancelled, freed, sized


async def for_ever():
    await asyncio.Event().wait()


def test_cancelling_stops_the_job_and_fails_the_request_at_once():
    async def main():
        table, stopped = FutureTable(), []

        async def job():
            try:
                await for_ever()
            except asyncio.CancelledError:
                stopped.append(1)
                raise

        running, other = table.start("asample", 1, job), table.start("asample", 2, job)
        await asyncio.sleep(0)
        table.cancel(running)
        assert json.loads((await table.wait(running, 0)).body)["category"] == "user"
        await asyncio.sleep(0)
        assert stopped == [1]
        assert await table.wait(other, 0) is None
        assert table.start("asample", 1, job) == running
        table.cancel(running)
        table.close()

    asyncio.run(main())


def test_only_samples_can_be_cancelled():
    async def main():
        table = FutureTable()
        request_id = table.start("training", 1, for_ever)
        with pytest.raises(ApiError, match="sampling"):
            table.cancel(request_id)
        assert await table.wait(request_id, 0) is None
        table.close()

    asyncio.run(main())


def test_ends_are_noted_and_requests_cancelled_by_their_log():
    async def main():
        table, mine, others = FutureTable(), CompletionLog(), CompletionLog()
        job, _ = job_of(Reply(b"123"))
        done = table.start("asample", 1, job, mine)
        running, kept = table.start("asample", 2, for_ever, mine), table.start("asample", 3, for_ever, others)
        await table.wait(done, 1)
        table.cancel_all([mine])
        ended = await mine.after(0, 0)
        assert [(e.cursor, e.request_id, e.failed) for e in ended] == [(1, done, False), (2, running, True)]
        assert ended[0].size == 3
        assert await others.after(0, 0) == []
        assert await table.wait(kept, 0) is None
        table.close()
        assert [entry.request_id for entry in await others.after(0, 30)] == [kept]

    asyncio.run(main())


def test_freed_results_are_gone_with_their_key():
    async def main():
        table, log = FutureTable(Retention(fetched_bytes=100)), CompletionLog()
        job, runs = job_of(*(Reply(bytes(60)) for _ in range(4)))
        first = table.start("asample", 1, job, log)
        await table.wait(first, 1)
        running = table.start("asample", 2, for_ever, log)
        table.free([first, running, "asample-none"], log)
        assert not table.knows("asample", 1)
        assert table.knows("asample", 2)
        assert await log.after(0, 0) == []
        again = table.start("asample", 1, job, log)
        assert again != first
        other = table.start("asample", 3, job, log)
        await table.wait(again, 1)
        table.free([again], log)
        await table.wait(other, 1)
        assert await table.wait(other, 1), "what was freed does not count towards the bound"
        assert len(runs) == 3
        table.close()

    asyncio.run(main())


def test_the_size_of_a_large_result_does_not_count_as_fetched():
    async def main():
        clock = Clock()
        table = FutureTable(Retention(fetched_seconds=10, unfetched_seconds=100), clock)
        job, _ = job_of(Reply(bytes(60)), Reply(b"1"))
        request_id = table.start("a", 1, job)
        told = json.loads((await table.wait(request_id, 1, most_bytes=59)).body)
        assert told == {"status": "complete_metadata", "response_payload_size": 60}
        clock.now = 50
        await table.wait(table.start("a", 2, job), 1)
        assert len((await table.wait(request_id, 1, most_bytes=60)).body) == 60

    asyncio.run(main())
