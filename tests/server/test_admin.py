"""Audit and usage, with the SDK's AdminClient."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
import tinker
from tinker import types

from tests.server.test_runs import step, train
from txlab.engine.requests import ForwardBackward

HOUR = timedelta(hours=1)


@pytest.fixture
def admin(server):
    return tinker.AdminClient(base_url=server.url, api_key=server.key)


def this_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def usage(admin, hours_ago: int = 1) -> types.BillingUsageResponse:
    end = this_hour() + HOUR  # a test may run over the full hour
    return admin.get_billing_usage(end - (1 + hours_ago) * HOUR, end + HOUR).result(timeout=20)


def test_usage_counts_what_was_trained_and_sampled(server, admin):
    service = server.client(user_metadata={"team": "x"})
    session_id = service.holder.get_session_id()
    client = train(service)
    step(client)
    step(client)
    client.save_state("one").result(timeout=20)
    sampler = service.create_sampling_client(base_model="fake/model").result(timeout=20)
    sampler.sample(types.ModelInput.from_ints([1] * 5), 2, types.SamplingParams(max_tokens=3)).result(timeout=20)
    report = usage(admin)
    totals: dict[str, int] = {}
    for event in report.data:
        info = event.event_info
        count = info.count if info.type == "checkpoint" else info.token_count
        totals[info.type] = totals.get(info.type, 0) + count
        assert (event.session_id, event.base_model, event.project_id) == (session_id, "fake/model", "default")
        assert event.bucket_end - event.bucket_start == HOUR
        assert event.bucket_start.minute == 0
        assert event.estimated_cost_usd is None
    assert totals == {"training": 6, "sampling_prefill": 5, "sampling_sample": 6, "checkpoint": 1}
    assert report.sessions[session_id].user_metadata == {"team": "x"}


def test_usage_of_failed_requests_is_nothing(server, admin):
    client = train(server.client())
    server.engine.broken = (ForwardBackward,)
    with pytest.raises(tinker.RequestFailedError):
        step(client)
    assert usage(admin).data == []


def test_usage_outside_the_window_is_not_counted(server, admin):
    step(train(server.client()))
    end = this_hour() - HOUR
    assert admin.get_billing_usage(end - HOUR, end).result(timeout=20).data == []


@pytest.mark.parametrize(
    ("start", "end", "mention"),
    [
        ("2026-01-01T00:30:00Z", "2026-01-01T02:00:00Z", "starting_on"),
        ("2026-01-01T00:00:00Z", "2026-01-01T02:00:01Z", "ending_before"),
        ("2026-01-01T02:00:00Z", "2026-01-01T02:00:00Z", "later"),
        ("2026-01-01T00:00:00Z", "2026-01-15T01:00:00Z", "14 days"),
    ],
)
def test_bad_windows_are_refused(admin, start, end, mention):
    with pytest.raises(tinker.UnprocessableEntityError, match=mention):
        admin.get_billing_usage(start, end).result(timeout=20)


def test_window_without_a_zone_is_refused(server):
    response = server.get("billing/usage/events?starting_on=2026-01-01T00:00:00&ending_before=2026-01-01T01:00:00Z")
    assert response.status_code == 422
    assert "starting_on" in response.json()["detail"]


def test_storage_of_checkpoints_by_project(server, admin):
    assert admin.get_current_checkpoint_storage_usage().result(timeout=20).data == []
    for project in ("red", "red", "blue"):
        service = server.client(project_id=project)
        train(service).save_state("one").result(timeout=20)
    items = {item.project_id: item for item in admin.get_current_checkpoint_storage_usage().result(timeout=20).data}
    assert {name: item.checkpoint_count for name, item in items.items()} == {"red": 2, "blue": 1}
    assert items["red"].size_bytes == 2 * items["blue"].size_bytes > 0
    assert items["red"].size_gigabytes == items["red"].size_bytes / 1e9
    only = admin.get_current_checkpoint_storage_usage(project_id="blue").result(timeout=20)
    assert [item.project_id for item in only.data] == ["blue"]


def test_audit_tells_what_was_done_to_checkpoints_and_projects(server, admin):
    service = server.client()
    client = train(service)
    path = client.save_state("one").result(timeout=20).path
    service.create_training_client_from_state(path).result(timeout=20)
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    rest.assign_session_project(service.holder.get_session_id(), "red").result(timeout=20)
    entries = admin.get_audit_log().result(timeout=20).entries
    assert [entry.event for entry in entries] == ["checkpoint_written", "checkpoint_read", "project_session_assigned"]
    assert all(entry.event_details["actor"] for entry in entries)
    assert entries[0].event_details["tinker_path"] == entries[1].event_details["tinker_path"] == path
    assert entries[0].timestamp.utcoffset() == timedelta()
    only = admin.get_audit_log("projects").result(timeout=20).entries
    assert [entry.event_details["project_id"] for entry in only] == ["red"]
    assert admin.get_audit_log("teams").result(timeout=20).entries == []


def test_audit_of_another_day(server, admin):
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    rest.assign_session_project(server.session(), "red").result(timeout=20)
    today = datetime.now(UTC).date()
    assert admin.get_audit_log(day=today - timedelta(days=2)).result(timeout=20).entries == []
    assert admin.get_audit_log(day=date.max).result(timeout=20).entries == []
    assert server.get("audit?event_type=wars").status_code == 422
