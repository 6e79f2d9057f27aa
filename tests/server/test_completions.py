"""The log of what has ended, alone."""

from __future__ import annotations

import asyncio

import pytest

from txlab.server.completions import CompletionLog


def names(entries):
    return [entry.request_id for entry in entries]


def add(log, *request_ids):
    for request_id in request_ids:
        log.add(request_id, failed=False, size=1)


def test_what_was_seen_is_forgotten_and_a_lost_answer_can_be_asked_for_again():
    async def main():
        log = CompletionLog()
        add(log, "a", "b")
        first = await log.after(0, 30)
        assert names(first) == names(await log.after(0, 30)) == ["a", "b"]
        add(log, "c")
        assert names(await log.after(first[-1].cursor, 30)) == ["c"]
        assert names(await log.after(0, 30)) == ["c"]
        log.drop("c")
        log.drop("never there")
        assert await log.after(0, 0) == []
        assert log.cursor == 3

    asyncio.run(main())


def test_all_who_wait_are_woken_by_news_and_by_the_end():
    async def main():
        log = CompletionLog()
        for wake, expected in ((lambda: add(log, "a"), ["a"]), (log.wake, [])):
            waiting = [asyncio.create_task(log.after(log.cursor, 30)) for _ in range(3)]
            await asyncio.sleep(0)
            wake()
            assert [names(found) for found in await asyncio.wait_for(asyncio.gather(*waiting), 10)] == [expected] * 3
        assert await log.after(log.cursor, 0.01) == []
        add(log, "b")
        with pytest.raises(TimeoutError):  # old news wakes nobody
            await asyncio.wait_for(log.after(log.cursor, 30), 0.05)

    asyncio.run(main())
