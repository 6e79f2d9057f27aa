"""Records: order, reads of what was written, other servers on the same root, search."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from txlab.store.database import open_database
from txlab.store.records import Records, SessionQuery
from txlab.store.tables import AuditRow, RequestRow, RunRow, SamplerRow, SessionRow

T0 = datetime(2026, 5, 4, 10, 30, tzinfo=UTC)

HOLD_A_SESSION = """
import sys
from pathlib import Path
from tests.store.test_records import opened, session

with opened(Path(sys.argv[1])) as records:
    records.add(session(records, "other"))
    records.session("other")
    print("ready", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def opened(root: Path) -> Iterator[Records]:
    records = Records(root, open_database(root))
    try:
        yield records
    finally:
        records.close()


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with opened(tmp_path) as records:
        yield records


def session(records: Records, name: str, created: datetime = T0, **about) -> SessionRow:
    defaults = {"tags": [], "user_metadata": {}, "display_name": None, "project_id": "default", "sdk_version": None}
    columns = {"server_id": records.server_id, "created": created, "last_activity": created} | defaults | about
    return SessionRow(session_id=name, **columns)


def run(session_id: str, number: int = 0, created: datetime = T0) -> RunRow:
    return RunRow(
        model_id=f"{session_id}:train:{number}",
        session_id=session_id,
        created=created,
        last_request=created,
        name="a run",
        base_model="base",
        lora={"rank": 8},
        user_metadata={"k": "v"},
    )


def request(session_id: str, kind: str, started: datetime = T0, **tokens) -> RequestRow:
    return RequestRow(
        kind=kind, session_id=session_id, owner_id="x", base_model="base", started=started, seconds=1.0, **tokens
    )


def found(records: Records, **query) -> list[str]:
    return [row.session_id for row in records.search(SessionQuery(**query), 100)]


# ------------------------------------------------------------------------------- writing, reading


def test_what_was_written_is_read_at_once(records: Records):
    for number in range(50):
        records.add(session(records, f"s{number:02}"))
        assert records.session(f"s{number:02}") is not None
        assert records.session_ids(100, 0)[0] == f"s{number:02}"


def test_writes_of_many_threads_all_arrive(records: Records):
    records.add(session(records, "s"))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: records.add(run("s", number)), range(200)))
    assert records.runs(5, 0)[1] == 200


def test_a_bad_write_is_logged_and_costs_no_other(records: Records, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR):
        records.add(session(records, "s"))
        records.add(run("nobody"))
        records.add(session(records, "s"))  # taken
        records.add(run("s"))
        assert records.run("s:train:0") is not None
    assert records.run("nobody:train:0") is None
    assert len(caplog.records) == 2


def test_everything_queued_is_there_after_a_restart(tmp_path: Path):
    with opened(tmp_path) as first:
        first.add(session(first, "s", display_name="mine", tags=["a"], user_metadata={"k": "v"}, sdk_version="1"))
        for number in range(500):
            first.add(run("s", number, T0 + timedelta(seconds=number)))
    with opened(tmp_path) as second:
        row = second.session("s")
        assert (row.display_name, row.tags, row.user_metadata, row.sdk_version) == ("mine", ["a"], {"k": "v"}, "1")
        assert row.created == T0
        page, total = second.runs(2, 1)
        assert total == 500
        assert [row.model_id for row in page] == ["s:train:498", "s:train:497"]
        assert page[0].lora == {"rank": 8}


def test_after_close_writes_are_dropped_and_reads_answer(tmp_path: Path):
    with opened(tmp_path) as records:
        records.close()
        records.add(session(records, "late"))
        assert records.session("late") is None
        assert records.session_ids(10, 0) == []


def test_a_request_makes_its_run_the_one_used_last(records: Records):
    records.add(session(records, "s"))
    records.add(run("s"))
    records.touch_run("s:train:0")
    assert records.run("s:train:0").last_request > T0
    records.touch_session("s")
    assert records.session("s").last_activity > T0


def test_runs_of_a_project_and_of_a_session(records: Records):
    for name, project in (("a", "red"), ("b", "blue")):
        records.add(session(records, name, project_id=project))
        records.add(run(name, 0, T0))
        records.add(run(name, 1, T0 + timedelta(seconds=1)))
    sampler = SamplerRow(sampler_id="a:sample:0", session_id="a", created=T0, base_model="base", model_path=None)
    records.add(sampler)
    assert [row.model_id for row in records.runs(10, 0, "red")[0]] == ["a:train:1", "a:train:0"]
    assert records.runs(1, 0, "red")[1] == 2
    assert records.runs_of("b") == ["b:train:0", "b:train:1"]
    assert records.samplers_of("a") == ["a:sample:0"]
    assert records.move_session("b", "red")
    assert not records.move_session("nobody", "red")
    assert records.runs(1, 0, "red")[1] == 4


# ------------------------------------------------------------------------------------------ ends


def test_the_first_end_stays(records: Records):
    records.add(session(records, "s"))
    records.end_session("s", "errored", "boom")
    records.end_session("s", "success", None)
    row = records.session("s")
    assert (row.finish_reason, row.finish_detail) == ("errored", "boom")
    assert row.ended > T0


def test_sessions_end_with_their_server(tmp_path: Path):
    with opened(tmp_path) as first:
        first.add(session(first, "s"))
        assert first.session("s").ended is None
    with opened(tmp_path) as second:
        row = second.session("s")
        assert row.ended == row.last_activity == T0
        assert row.finish_reason is None


def test_two_servers_of_one_process_do_not_end_each_others_sessions(tmp_path: Path):
    with opened(tmp_path) as first, opened(tmp_path) as second:
        first.add(session(first, "one"))
        second.add(session(second, "two"))
        first.session("one")
        assert found(second, statuses=["active"]) == ["two", "one"]
        assert found(first, statuses=["active"]) == ["two", "one"]


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_server_ends_its_sessions_and_a_living_one_does_not(tmp_path: Path):
    command = [sys.executable, "-c", HOLD_A_SESSION, str(tmp_path)]
    other = Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert other.stdout.readline() == "ready\n"
        with opened(tmp_path) as records:
            records.add(session(records, "mine"))
            assert found(records, statuses=["active"]) == ["other", "mine"]
            other.send_signal(signal.SIGKILL)
            other.wait()
            assert found(records, statuses=["active"]) == ["mine"]
            assert records.session("other").ended == T0
        assert not list((tmp_path / "servers").iterdir())
    finally:
        other.kill()
        other.communicate()


# ------------------------------------------------------------------------------------------ search


def test_search_by_id_or_name(records: Records):
    for name, display in (("a", "Nightly Müller run"), ("b", "nightly"), ("c", None), ("d", "100%")):
        records.add(session(records, name, display_name=display))
    assert found(records, display_name="NIGHT") == ["b", "a"]
    assert found(records, display_name="run MÜLL") == ["a"]
    assert found(records, display_name="%") == ["d"]
    assert found(records, session_id="c") == ["c"]
    assert found(records, session_id="c", display_name="müller") == ["c", "a"]
    assert found(records) == ["d", "c", "b", "a"]


def test_search_by_metadata_and_project(records: Records):
    records.add(session(records, "a", user_metadata={"team": "x", 'q"uote': "1"}, project_id="red"))
    records.add(session(records, "b", user_metadata={"team": "x"}, project_id="blue"))
    assert found(records, user_metadata={"team": "x"}) == ["b", "a"]
    assert found(records, user_metadata={"team": "x", 'q"uote': "1"}) == ["a"]
    assert found(records, user_metadata={"team": "y"}) == []
    assert found(records, user_metadata={"other": "x"}) == []
    assert found(records, project_ids=["blue", "green"]) == ["b"]
    assert found(records, project_ids=[]) == []


def test_search_by_status(records: Records):
    for name, reason in (("a", "success"), ("b", "errored"), ("c", None)):
        records.add(session(records, name))
        records.end_session(name, reason)
    records.add(session(records, "d"))
    assert found(records, statuses=["active"]) == ["d"]
    assert found(records, statuses=["active", "errored"]) == ["d", "b"]
    assert found(records, statuses=["cancelled"]) == []
    assert found(records, statuses=["success", "errored", "interrupted"]) == ["b", "a"]


def test_pages_follow_on_each_other_where_times_are_equal(records: Records):
    for name in "abcde":
        records.add(session(records, name))
    seen, after = [], None
    while page := records.search(SessionQuery(after=after), 2):
        seen += [row.session_id for row in page]
        after = (page[-1].created, page[-1].session_id)
        records.add(session(records, f"new{len(seen)}", T0 + timedelta(seconds=1)))
    assert seen == list("edcba")


# ------------------------------------------------------------------------------- requests, audit


def test_usage_sums_up_by_hour_kind_and_session(records: Records):
    next_hour = T0 + timedelta(minutes=30)
    records.add(request("s", "Sample", tokens_in=5, tokens_cached=2, tokens_out=7))
    records.add(request("s", "Sample", tokens_in=1, tokens_out=1))
    records.add(request("t", "Sample", tokens_in=9))
    records.add(request("s", "ForwardBackward", next_hour, tokens_in=100))
    records.add(request("s", "ForwardBackward", error="out of memory"))
    rows = records.usage(T0 - timedelta(hours=1), T0 + timedelta(hours=1))
    got = {(r.hour.hour, r.kind, r.session_id): (r.requests, r.tokens_in, r.tokens_cached, r.tokens_out) for r in rows}
    assert got == {
        (10, "Sample", "s"): (2, 6, 2, 8),
        (10, "Sample", "t"): (1, 9, 0, 0),
        (11, "ForwardBackward", "s"): (1, 100, 0, 0),
    }
    assert rows[0].hour == datetime(2026, 5, 4, 10, tzinfo=UTC)
    assert [row.kind for row in records.usage(T0, next_hour)] == ["Sample", "Sample"]  # the end is exclusive


def test_requests_of_a_session_in_the_order_of_their_start(records: Records):
    records.add(request("s", "OptimStep", T0 + timedelta(seconds=2)))
    records.add(request("s", "ForwardBackward"))
    records.add(request("t", "Sample"))
    assert [row.kind for row in records.requests("s")] == ["ForwardBackward", "OptimStep"]


def test_old_requests_are_forgotten_when_a_server_starts(tmp_path: Path):
    now = datetime.now(UTC)
    with opened(tmp_path) as records:
        records.add(request("s", "Sample", now - timedelta(days=31)))
        records.add(request("s", "OptimStep", now - timedelta(days=29)))
        assert len(records.requests("s")) == 2
    with opened(tmp_path) as records:
        assert [row.kind for row in records.requests("s")] == ["OptimStep"]


def test_audited_events_of_a_day_and_a_resource(records: Records):
    for hours, event in ((0, "checkpoint_created"), (1, "project_session_assigned"), (24, "checkpoint_read")):
        records.add(AuditRow(time=T0 + timedelta(hours=hours), event=event, details={"n": hours}))
    day = (T0, T0 + timedelta(days=1))
    assert [row.event for row in records.audit(*day)] == ["checkpoint_created", "project_session_assigned"]
    assert [row.details for row in records.audit(*day, "checkpoint")] == [{"n": 0}]
