"""The layout of a timeline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from txlab.server.trace import chrome_trace
from txlab.store.tables import RequestRow

T0 = datetime(2026, 5, 4, tzinfo=UTC)


def request(start: float, seconds: float, owner: str | None = "m", **about) -> RequestRow:
    started = T0 + timedelta(seconds=start)
    return RequestRow(
        kind="Sample", session_id="s", owner_id=owner, base_model="b", started=started, seconds=seconds, **about
    )


def spans(*requests: RequestRow) -> list[tuple[int, int]]:
    events = chrome_trace(requests)["traceEvents"]
    return [(event["pid"], event["tid"]) for event in events if event["ph"] == "X"]


def test_times_are_in_microseconds():
    (_, span) = chrome_trace([request(1.5, 0.25)])["traceEvents"]
    assert span["ts"] == (T0.timestamp() + 1.5) * 1e6
    assert span["dur"] == 0.25e6


def test_what_overlaps_has_lanes_of_its_own_and_a_free_lane_is_used_again():
    assert spans(request(0, 10), request(1, 2), request(2, 1), request(3, 1), request(10, 1)) == [
        (1, 1),
        (1, 2),
        (1, 3),
        (1, 2),
        (1, 3),
    ]


def test_owners_are_apart_and_named():
    assert spans(request(0, 10), request(1, 1, "other"), request(2, 1, None)) == [(1, 1), (2, 1), (3, 1)]
    events = chrome_trace([request(0, 1, "x"), request(0, 1, None)])["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["x", "base model"]


def test_failures_say_why():
    (_, span) = chrome_trace([request(0, 1, error="out of memory")])["traceEvents"]
    assert (span["cat"], span["args"]["error"]) == ("error", "out of memory")
