"""Sessions and training runs over REST, with the SDK's client: listed, searched, and still there after a restart."""

from __future__ import annotations

import json
import urllib.request
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import tinker
from tinker import types

from tests.server.conftest import serve
from txlab.config import ServerSettings

UNKNOWN = "0000000000000000"


def rest_of(server) -> tinker.RestClient:
    return tinker.RestClient(base_url=server.url, api_key=server.key)


def search(rest, **fields) -> types.SessionSearchResponse:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental
        return rest.search_sessions(types.SessionSearchRequest(**fields)).result(timeout=20)


def found(rest, **fields) -> list[str]:
    return [session.session_id for session in search(rest, **fields).sessions]


def train(service, **kwargs) -> tinker.TrainingClient:
    return service.create_lora_training_client(base_model="fake/model", rank=8, **kwargs).result(timeout=20)


def step(client) -> None:
    inputs = {"target_tokens": np.array([1, 2, 3]), "weights": np.ones(3, np.float32)}
    datum = types.Datum(model_input=types.ModelInput.from_ints([1, 2, 3]), loss_fn_inputs=inputs)
    client.forward_backward([datum], "cross_entropy").result(timeout=20)
    client.optim_step(types.AdamParams(learning_rate=1.0)).result(timeout=20)


@pytest.fixture
def rest(server):
    return rest_of(server)


@contextmanager
def restarted(engine, tmp_path):
    with serve(engine, tmp_path / "store", ServerSettings(poll_seconds=0.3)) as server:
        yield server


# --------------------------------------------------------------------------------- training runs


def test_run_is_described_as_it_was_made(server, rest):
    before = datetime.now(UTC)
    client = train(server.client(), user_metadata={"team": "blue"})
    run = rest.get_training_run(client.model_id).result(timeout=20)
    assert run.training_run_id == client.model_id
    assert (run.base_model, run.is_lora, run.lora_rank, run.corrupted) == ("fake/model", True, 8, False)
    assert run.user_metadata == {"team": "blue"}
    assert run.last_request_time.utcoffset() == timedelta()
    assert before <= run.last_request_time
    assert run.last_checkpoint is run.last_sampler_checkpoint is None
    step(client)
    assert rest.get_training_run(client.model_id).result(timeout=20).last_request_time > run.last_request_time


def test_metadata_that_is_no_text_is_given_back_as_json(server, rest):
    session_id = server.session(user_metadata={"n": 3, "list": [1], "text": "x"})
    assert rest.get_session(session_id).result(timeout=20).user_metadata == {"n": "3", "list": "[1]", "text": "x"}


def test_runs_are_listed_newest_first_page_by_page(server, rest):
    session_id = server.session()
    ids = [server.model(session_id, number) for number in range(5)]
    page = rest.list_training_runs(limit=2, offset=1).result(timeout=20)
    assert [run.training_run_id for run in page.training_runs] == [ids[3], ids[2]]
    assert (page.cursor.offset, page.cursor.limit, page.cursor.total_count) == (1, 2, 5)
    assert rest.list_training_runs(offset=5).result(timeout=20).training_runs == []
    everyones = rest.list_training_runs(access_scope="accessible").result(timeout=20)
    assert len(everyones.training_runs) == 5


def test_run_made_from_a_checkpoint_is_a_run_of_its_own(server, rest):
    service = server.client()
    client = train(service)
    step(client)
    path = client.save_state("one").result(timeout=20).path
    copy = service.create_training_client_from_state(path, user_metadata={"copy": "yes"}).result(timeout=20)
    run = rest.get_training_run(copy.model_id).result(timeout=20)
    assert (run.lora_rank, run.user_metadata) == (8, {"copy": "yes"})


def test_run_has_its_newest_checkpoints(server, rest):
    client = train(server.client())
    for name in ("one", "two"):
        client.save_state(name).result(timeout=20)
        client.save_weights_for_sampler(name).result(timeout=20)
    run = rest.get_training_run(client.model_id).result(timeout=20)
    assert run.last_checkpoint.checkpoint_id == "weights/two"
    assert run.last_checkpoint.checkpoint_type == "training"
    assert run.last_sampler_checkpoint.tinker_path == f"tinker://{client.model_id}/sampler_weights/two"
    assert run.last_sampler_checkpoint.time.utcoffset() == timedelta()


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "offset=-1", "limit=x", "access_scope=mine"])
@pytest.mark.parametrize("route", ["training_runs", "sessions"])
def test_bad_pages_are_refused(server, route, query):
    response = server.get(f"{route}?{query}")
    assert response.status_code == 422
    assert query.split("=")[0] in response.json()["detail"]


def test_what_is_unknown_is_404_at_once(server, rest):
    for call in (
        lambda: rest.get_training_run(f"{UNKNOWN}:train:0"),
        lambda: rest.get_session(UNKNOWN),
        lambda: rest.export_session_trace(UNKNOWN),
        lambda: rest.assign_session_project(UNKNOWN, "p"),
    ):
        with pytest.raises(tinker.NotFoundError, match=UNKNOWN):
            call().result(timeout=20)


# -------------------------------------------------------------------------------------- sessions


def test_session_shows_what_was_made_in_it(server, rest):
    service = server.client(user_metadata={"k": "v"})
    session_id = service.holder.get_session_id()
    assert rest.list_sessions().result(timeout=20).sessions == [session_id]
    first, second = train(service), train(service)
    path = first.save_weights_for_sampler("w").result(timeout=20).path
    service.create_sampling_client(base_model="fake/model").result(timeout=20)
    service.create_sampling_client(model_path=path)
    first.save_weights_and_get_sampling_client()
    info = rest.get_session(session_id).result(timeout=20)
    assert info.training_run_ids == [first.model_id, second.model_id]
    assert len(info.sampler_ids) == 3
    assert set(info.sampler_ids) == set(server.state.sessions.get(session_id).samplers)
    assert info.user_metadata == {"k": "v"}


def test_sessions_are_listed_newest_first(server, rest):
    ids = [server.session() for _ in range(4)]
    assert rest.list_sessions(limit=2, offset=1).result(timeout=20).sessions == [ids[2], ids[1]]


def test_search_finds_by_everything_that_a_session_was_given(server, rest):
    nightly = server.session(display_name="Nightly eval", user_metadata={"team": "x"}, project_id="red")
    other = server.session(display_name="daily eval", user_metadata={"team": "y"})
    assert found(rest, session_id=other) == [other]
    assert found(rest, display_name="EVAL night") == [nightly]
    assert found(rest, user_metadata={"team": "y"}) == [other]
    assert found(rest, project_ids=["red"]) == [nightly]
    assert found(rest, owner=types.AccessibleSearchOwner()) == [other, nightly]
    mine = search(rest, session_id=nightly).sessions[0]
    assert found(rest, owner=types.UserSearchOwner(owner_urns=[mine.owner])) == [other, nightly]
    assert found(rest, owner=types.UserSearchOwner(owner_urns=["tml:user:somebody"])) == []
    assert (mine.display_name, mine.project_id, mine.user_metadata) == ("Nightly eval", "red", {"team": "x"})
    assert mine.created_at.utcoffset() == timedelta()


def test_search_tells_how_sessions_ended(server, rest):
    active, done, failed = (server.session() for _ in range(3))
    server.post(f"sessions/{done}/finish", {"reason": {"type": "success"}, "detail": None})
    server.post(f"sessions/{failed}/finish", {"reason": {"type": "errored"}, "detail": "boom"})
    server.post(f"sessions/{failed}/finish", {"reason": {"type": "success"}, "detail": "late"})
    assert found(rest, statuses=[types.ActiveSessionStatusQuery()]) == [active]
    assert found(rest, statuses=[types.ClientFinishedSessionStatusQuery()]) == [failed, done]
    assert found(rest, statuses=[types.ClientFinishedSessionStatusQuery(reasons=["success"])]) == [done]
    assert found(rest, statuses=[types.FailedSessionStatusQuery(), types.CancelledSessionStatusQuery()]) == []
    status = search(rest, session_id=failed).sessions[0].status
    assert (status.type, status.reason.type, status.detail) == ("client_finished", "errored", "boom")
    assert search(rest, session_id=active).sessions[0].status.type == "active"


def test_search_pages_by_cursor(server, rest):
    ids = [server.session() for _ in range(5)]
    seen, request = [], types.SessionSearchRequest(limit=2)
    while True:
        page = search(rest, **request.model_dump(exclude_none=True))
        seen += [session.session_id for session in page.sessions]
        if page.next_cursor is None:
            break
        request = request.model_copy(update={"cursor": page.next_cursor})
    assert seen == ids[::-1]


def test_search_counts_checkpoints(server, rest):
    service = server.client()
    train(service).save_state("one").result(timeout=20)
    (summary,) = search(rest, session_id=service.holder.get_session_id()).sessions
    assert summary.checkpoints_count == 1
    assert summary.checkpoint_storage_bytes > 0


@pytest.mark.parametrize(
    "body",
    [
        {"limit": 0},
        {"limit": 201},
        {"statuses": []},
        {"statuses": [{"type": "odd"}]},
        {"display_name": ""},
        {"cursor": {"last_created_at": "2026-01-01T00:00:00", "last_session_id": "x"}},
    ],
)
def test_bad_searches_are_refused(server, body):
    response = server.post("sessions/search", body)
    assert response.status_code == 422
    assert next(iter(body)) in response.json()["detail"]


def test_session_moves_to_a_project_with_its_runs(server, rest):
    service = server.client()
    client = train(service)
    session_id = service.holder.get_session_id()
    assert rest.list_training_runs(project_id="red").result(timeout=20).cursor.total_count == 0
    assert rest.assign_session_project(session_id, "red").result(timeout=20) is None
    (run,) = rest.list_training_runs(project_id="red").result(timeout=20).training_runs
    assert run.training_run_id == client.model_id
    assert found(rest, project_ids=["red"]) == [session_id]


# ----------------------------------------------------------------------------------------- trace


def test_trace_is_fetched_without_a_key(server, rest):
    service = server.client()
    client = train(service)
    step(client)
    sampler = service.create_sampling_client(base_model="fake/model").result(timeout=20)
    prompt = types.ModelInput.from_ints([1, 2, 3])
    sampler.sample(prompt, 2, types.SamplingParams(max_tokens=4)).result(timeout=20)
    url = rest.export_session_trace(service.holder.get_session_id()).result(timeout=20)
    with urllib.request.urlopen(url) as response:
        events = json.load(response)["traceEvents"]
    spans = {event["name"]: event for event in events if event["ph"] == "X"}
    assert set(spans) == {"CreateAdapter", "ForwardBackward", "OptimStep", "Sample"}
    assert spans["ForwardBackward"]["args"]["tokens_in"] == 3
    assert (spans["Sample"]["args"]["tokens_in"], spans["Sample"]["args"]["tokens_out"]) == (3, 8)
    assert spans["ForwardBackward"]["ts"] + spans["ForwardBackward"]["dur"] <= spans["OptimStep"]["ts"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names[spans["OptimStep"]["pid"]] == client.model_id
    assert names[spans["Sample"]["pid"]].endswith(":sample:0")


def test_a_link_opens_nothing_else(server, rest):
    one, two = server.session(), server.session()
    url = rest.export_session_trace(one).result(timeout=20)
    for wrong in (url.replace(one, two), url + "0", url.replace("expires=", "expires=9"), url.partition("?")[0]):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(wrong)


# --------------------------------------------------------------------------------------- restart


def test_everything_is_known_after_a_restart(engine, tmp_path):
    with restarted(engine, tmp_path) as first:
        service = first.client()
        session_id, client = service.holder.get_session_id(), train(service, user_metadata={"a": "b"})
        open_session = first.session()
        service.close("success").result(timeout=20)
        before = rest_of(first).get_training_run(client.model_id).result(timeout=20)
    with restarted(engine, tmp_path) as second:
        rest = rest_of(second)
        assert rest.get_training_run(client.model_id).result(timeout=20) == before
        assert rest.list_training_runs().result(timeout=20).training_runs == [before]
        assert rest.list_sessions().result(timeout=20).sessions == [open_session, session_id]
        assert rest.get_session(session_id).result(timeout=20).training_run_ids == [client.model_id]
        assert search(rest, session_id=open_session).sessions[0].status is None
        assert search(rest, session_id=session_id).sessions[0].status.type == "client_finished"
        assert found(rest, statuses=[types.ActiveSessionStatusQuery()]) == []


def test_two_servers_share_a_root(engine, tmp_path):
    with restarted(engine, tmp_path) as first, restarted(engine, tmp_path) as second:
        one, two = first.session(), second.session()
        first.get("sessions")  # brings its writes to the disk
        assert found(rest_of(second), statuses=[types.ActiveSessionStatusQuery()]) == [two, one]
        assert found(rest_of(first), statuses=[types.ActiveSessionStatusQuery()]) == [two, one]
