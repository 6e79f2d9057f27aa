"""A request sent again after a lost response: each kind runs once and answers as it did."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.test_api import base_sampler, optim, pass_body, request_id, sample
from txlab.engine.requests import (
    LoadSnapshot,
    OptimStep,
    SkipSeq,
    TakeSnapshot,
    UnloadAdapter,
)

GRAPH = {"format": 1, "nodes": []}


@pytest.fixture
def session_id(server):
    return server.session()


@pytest.fixture
def model_id(server, session_id):
    return server.model(session_id)


@pytest.fixture
def checkpoint(server, model_id):
    """The path of a checkpoint that was saved as the model's first request."""
    save = {"model_id": model_id, "seq_id": 1, "path": "saved"}
    return server.retrieve(request_id(server.post("save_weights_for_sampler", save))).json()["path"]


def kinds(server):
    return Counter(type(request) for request in server.engine.log)


REPEATABLE = {
    "create_model": lambda s, m: {"session_id": s, "model_seq_id": 5, "base_model": "fake/model"},
    "load_weights": lambda s, m: {
        "session_id": s,
        "model_seq_id": 6,
        "path": f"tinker://{m}/weights/x",
        "optimizer": False,
    },
    "forward_backward": lambda s, m: pass_body(m, 1),
    "optim_step": lambda s, m: optim(m, 1),
    "save_weights": lambda s, m: {"model_id": m, "seq_id": 1, "path": "a"},
    "save_weights_for_sampler": lambda s, m: {"model_id": m, "seq_id": 1, "sampling_session_seq_id": 3},
    "asample": lambda s, m: sample(f"{s}:sample:0", 7 * 10**9, num_samples=2),
    "create_custom_loss": lambda s, m: {
        "session_id": s,
        "custom_loss_seq_id": 0,
        "name": "mine",
        "inputs": [],
        "graph": GRAPH,
    },
    "unload_model": lambda s, m: {"model_id": m},
}


@pytest.mark.parametrize("route", REPEATABLE)
def test_a_repeat_gets_the_same_answer_also_when_the_result_was_fetched(server, session_id, model_id, route):
    base_sampler(server, session_id)
    body = REPEATABLE[route](session_id, model_id)
    post = {"content": body} if isinstance(body, bytes) else {"body": body}
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda _: server.post(route, **post), range(3)))
    first = server.retrieve(request_id(replies[0]))
    ran = len(server.engine.log)
    replies.append(server.post(route, **post))
    assert all(reply.json() == replies[0].json() for reply in replies)
    assert server.retrieve(request_id(replies[-1])).content == first.content
    assert len(server.engine.log) == ran


def test_a_repeat_of_what_failed_fails_the_same_way(server, model_id):
    server.engine.broken = (OptimStep,)
    first = request_id(server.post("optim_step", optim(model_id, 1)))
    failure = server.retrieve(first).json()
    server.engine.broken = ()
    assert request_id(server.post("optim_step", optim(model_id, 1))) == first
    assert server.retrieve(first).json() == failure
    assert kinds(server)[OptimStep] == 1


def test_a_repeat_whose_session_has_ended_is_refused_clearly(server, session_id, model_id):
    sampler_id = base_sampler(server, session_id)
    for route, body in (("asample", sample(sampler_id)), ("optim_step", optim(model_id, 1))):
        server.retrieve(request_id(server.post(route, body)))
    server.post(f"sessions/{session_id}/finish", {"reason": {"type": "success"}})
    for route, body in (("asample", sample(sampler_id)), ("optim_step", optim(model_id, 1))):
        reply = server.post(route, body)
        assert reply.status_code == 400
        assert int(reply.headers["content-length"]) > 0
        assert "was finished by its client (success)" in reply.json()["detail"]


# ---------------------------------------------------------------------------------------- samplers


def test_a_sampler_that_is_still_being_loaded_is_loaded_once(server, session_id, checkpoint, monkeypatch):
    gate, read, reads = threading.Event(), server.checkpoints.read, []

    def slow_read(*args, **kwargs):
        reads.append(args)
        gate.wait(20)
        return read(*args, **kwargs)

    monkeypatch.setattr(server.checkpoints, "read", slow_read)
    body = {"session_id": session_id, "sampling_session_seq_id": 0, "model_path": checkpoint}
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.post, "create_sampling_session", body) for _ in range(3)]
        server.session()  # answered while they wait
        gate.set()
        ids = {future.result().json()["sampling_session_id"] for future in waiting}
    assert ids == {f"{session_id}:sample:0"}
    assert server.get(f"samplers/{ids.pop()}").json()["model_path"] == checkpoint
    assert (len(reads), kinds(server)[LoadSnapshot]) == (1, 1)


def test_a_sampler_that_could_not_be_made_fails_the_same_way(server, session_id, model_id, monkeypatch):
    reads, read = [], server.checkpoints.read
    monkeypatch.setattr(server.checkpoints, "read", lambda *a, **k: reads.append(a) or read(*a, **k))
    body = {"session_id": session_id, "sampling_session_seq_id": 0, "model_path": f"tinker://{model_id}/weights/none"}
    replies = [server.post("create_sampling_session", body) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [404, 404]
    assert replies[0].json() == replies[1].json()
    assert len(reads) == 1
    assert server.get(f"samplers/{session_id}:sample:0").status_code == 404


def test_a_save_under_a_taken_sampler_number_is_the_same_save(server, session_id, model_id):
    def save(seq_id):
        body = {"model_id": model_id, "seq_id": seq_id, "sampling_session_seq_id": 0}
        return server.retrieve(request_id(server.post("save_weights_for_sampler", body))).json()

    assert save(1) == save(2)
    assert "step" in server.retrieve(request_id(server.post("optim_step", optim(model_id, 3)))).json()["metrics"]
    assert (kinds(server)[TakeSnapshot], kinds(server)[SkipSeq]) == (1, 1)


# ----------------------------------------------------------------------------------------- unloading


def test_unknown_models_are_not_unloaded(server):
    for model_id in ("nobody:train:0", ""):
        reply = server.post("unload_model", {"model_id": model_id})
        assert reply.status_code == 404
        assert repr(model_id) in reply.json()["detail"]


def test_what_is_queued_for_an_unloaded_model_fails(server, model_id):
    waiting = request_id(server.post("optim_step", optim(model_id, 2)))  # its predecessor never comes
    server.retrieve(request_id(server.post("unload_model", {"model_id": model_id})))
    assert "unloaded" in server.retrieve(waiting).json()["error"]
    assert server.post("optim_step", optim(model_id, 3)).status_code == 404
    assert kinds(server)[UnloadAdapter] == 1


def test_a_model_made_of_a_checkpoint_is_described_trained_and_unloaded(server, session_id, model_id):
    save = {"model_id": model_id, "seq_id": 1, "path": "saved"}
    path = server.retrieve(request_id(server.post("save_weights", save))).json()["path"]
    load = {"session_id": session_id, "model_seq_id": 1, "path": path, "optimizer": True}
    made = server.retrieve(request_id(server.post("load_weights", load))).json()
    assert made["model_id"] == f"{session_id}:train:1"
    info = server.post("get_info", {"model_id": made["model_id"]}).json()
    assert (info["lora_rank"], info["model_name"]) == (8, "fake/model")
    assert "metrics" in server.retrieve(request_id(server.post("optim_step", optim(made["model_id"], 1)))).json()
    server.retrieve(request_id(server.post("unload_model", {"model_id": made["model_id"]})))
    assert list(server.engine.adapters) == [model_id]
