"""The ``tinker`` command line: sessions, runs, models and usage."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from tests.server.test_runs import step, train

pytestmark = pytest.mark.slow  # starts processes


@pytest.fixture
def tinker(server, tmp_path: Path):
    """Run the command line against the server."""
    return partial(server.tinker, tmp_path)


def test_version_status_and_models(tinker):
    assert tinker("version").startswith("tinker ")
    assert "Tinker accessible: yes" in tinker("auth", "status")
    assert "fake/model" in tinker("model", "list")
    (model,) = json.loads(tinker("-f", "json", "model", "list"))["models"]
    assert (model["model_name"], model["max_context_length"]) == ("fake/model", 4096)


def test_runs_are_listed_and_described(tinker, server):
    client = train(server.client(), user_metadata={"team": "blue"})
    table = tinker("run", "list", "--columns", "id,model,owner,lora,updated,status,checkpoint,checkpoint_time")
    assert "1 training run" in table
    assert client.model_id in table
    assert "Rank 8" in table
    (run,) = json.loads(tinker("-f", "json", "run", "list"))["runs"]
    assert (run["training_run_id"], run["lora_rank"]) == (client.model_id, 8)
    described = tinker("run", "info", client.model_id)
    assert "Yes (Rank 8)" in described
    assert "blue" in described
    assert json.loads(tinker("-f", "json", "run", "info", client.model_id)) == run
    assert "nobody:train:0" in tinker("run", "info", "nobody:train:0", fails=True)


def test_all_runs_are_fetched_page_by_page(tinker, server):
    session_id = server.session()
    ids = [server.model(session_id, number) for number in range(103)]
    runs = json.loads(tinker("-f", "json", "run", "list", "--limit", "0"))["runs"]
    assert [run["training_run_id"] for run in runs] == ids[::-1]
    assert "101 more not shown" in tinker("run", "list", "--limit", "2")


def test_trace_is_downloaded(tinker, server, tmp_path):
    service = server.client()
    step(train(service))
    session_id = service.holder.get_session_id()
    assert "Saved to" in tinker("session", "export-trace", session_id)
    trace = json.loads((tmp_path / f"{session_id}.pftrace").read_text())
    assert {"ForwardBackward", "OptimStep"} <= {event["name"] for event in trace["traceEvents"]}
    other = tmp_path / "deep" / "file.json"
    told = json.loads(tinker("-f", "json", "session", "export-trace", session_id, "-o", str(other)))
    assert told["file_size_bytes"] == other.stat().st_size
    assert tinker("session", "export-trace", session_id, "--url-only").startswith(server.url)
    assert "nobody" in tinker("session", "export-trace", "nobody", fails=True)


def test_usage_and_storage(tinker, server, tmp_path):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    window = [moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in (hour, hour + timedelta(hours=2))]
    client = train(server.client(user_metadata={"team": "blue"}))
    step(client)
    client.save_state("one").result(timeout=20)
    assert "training" in tinker("billing", "usage", *window)
    report = json.loads(tinker("-f", "json", "billing", "usage", *window))
    assert {event["event_info"]["type"] for event in report["data"]} == {"training", "checkpoint"}
    rows, sessions = tmp_path / "rows.csv", tmp_path / "sessions.csv"
    tinker("billing", "usage", *window, "--csv", str(rows), "--sessions-csv", str(sessions))
    assert "token_count" in rows.read_text()
    assert "blue" in sessions.read_text()
    assert "default" in tinker("billing", "checkpoint-storage")
    (item,) = json.loads(tinker("-f", "json", "billing", "checkpoint-storage"))["data"]
    assert (item["project_id"], item["checkpoint_count"]) == ("default", 1)
    assert "full hour" in tinker("billing", "usage", "2026-01-01T00:30:00Z", "2026-01-01T02:00:00Z", fails=True)
