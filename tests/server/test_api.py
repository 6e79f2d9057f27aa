"""The API as raw HTTP: what the SDK does not show."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.server.conftest import serve
from txlab.config import ServerSettings
from txlab.engine.requests import CreateAdapter, DropSnapshot, OptimStep, SkipSeq, TakeSnapshot, UnloadAdapter
from txlab.server import tinker_wire_pb2 as pb
from txlab.server.app import create_app

ABSENT = "tinker://x/weights/y"
ADAM = {"learning_rate": 0.5, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0, "grad_clip_norm": 0.0}


def optim(model_id, seq_id, **params):
    return {"model_id": model_id, "seq_id": seq_id, "type": "optim_step", "adam_params": ADAM | params}


def pass_body(model_id, seq_id, *, tokens=(1, 2), targets=(2, 3), **fields):
    message = pb.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id, **({"loss_fn": "cross_entropy"} | fields))
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.array(tokens, np.int32).tobytes()
    tensor = datum.loss_fn_inputs["target_tokens"]
    tensor.dense, tensor.dtype = np.array(targets, np.int64).tobytes(), pb.DTYPE_INT64
    tensor.shape.append(len(targets))
    return message.SerializeToString()


def sample(sampler_id, seq_id=0, **fields):
    params = {"max_tokens": 2} | fields.pop("sampling_params", {})
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}
    body = {"sampling_session_id": sampler_id, "seq_id": seq_id, "num_samples": 1, "prompt": prompt, "type": "sample"}
    return body | {"sampling_params": params} | fields


def base_sampler(server, session_id, number=0):
    body = {"session_id": session_id, "sampling_session_seq_id": number, "base_model": "fake/model"}
    return server.post("create_sampling_session", body).json()["sampling_session_id"]


def request_id(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["request_id"]


# ---------------------------------------------------------------------------------- key, documents


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "tml-wrong"}, {"Authorization": "Bearer tml-wrong"}, {"X-API-Key": "ä"}]
)
def test_wrong_key_is_401_and_says_what_to_do(server, headers):
    headers = {name: value.encode() for name, value in headers.items()}
    response = httpx.post(f"{server.url}/api/v1/create_session", json={"tags": []}, headers=headers)
    assert response.status_code == 401
    assert "TINKER_API_KEY" in response.json()["detail"]


def test_bearer_token_is_as_good_as_the_key_header(server):
    headers = {"Authorization": f"Bearer {server.key}"}
    assert httpx.get(f"{server.url}/api/v1/get_server_capabilities", headers=headers).status_code == 200


def test_health_and_documentation_are_open_and_every_route_has_a_summary(server):
    assert httpx.get(f"{server.url}/api/v1/healthz").json() == {"status": "ok"}
    document = httpx.get(f"{server.url}/openapi.json").json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["tags"], path
            assert operation["summary"], path


@pytest.mark.parametrize("key", [None, "", "secret", "tml-ä"])
def test_app_is_never_built_without_a_key_that_the_sdk_takes(engine, key):
    with pytest.raises(ValueError, match="tml-"):
        create_app(engine, None, ServerSettings(api_key=key))


# ------------------------------------------------------------------------------------------ bodies


def test_malformed_bodies_are_refused_with_a_reason(server):
    json_type = {"Content-Type": "application/json"}
    cases = [
        (server.post("optim_step", content=b"{nope", headers=json_type), 400, "JSON"),
        (server.post("asample", content=b"{nope", headers=json_type), 400, "JSON"),
        (server.post("forward_backward", content=b"\xff\xff\xff"), 400, "protobuf"),
        (server.post("forward_backward", content=b"?", headers={"Content-Encoding": "zstd"}), 400, "zstd"),
        (server.post("optim_step", {"seq_id": 1}), 422, "model_id"),
        (server.post("asample", sample("x") | {"prompt": 3}), 422, "prompt"),
        (server.post("optim_step", optim("m", 0)), 422, "seq_id"),
        (server.post("no_such_route", {}), 404, "POST /api/v1/no_such_route"),
        (server.get("create_session"), 405, "GET"),
    ]
    for response, status, mention in cases:
        assert response.status_code == status, response.text
        assert mention in response.json()["detail"]
        assert int(response.headers["content-length"]) > 0


def test_unknown_request_fields_are_ignored(server):
    assert server.post("create_session", {"tags": [], "something": "new"}).status_code == 200


def test_bug_in_a_route_is_answered_once_and_logged(server, monkeypatch, caplog):
    monkeypatch.setattr(server.state.sessions, "create", lambda *about, **more: 1 / 0)
    response = server.post("create_session", {"tags": []})
    assert response.status_code == 400
    assert "ZeroDivisionError" in response.json()["detail"]
    assert "create_session failed" in caplog.text


# ----------------------------------------------------------------------------------------- futures


def test_poll_is_held_then_408_then_the_result(server):
    model_id = server.model(server.session())
    server.engine.gate.clear()
    rid = request_id(server.post("optim_step", optim(model_id, 1)))
    began = time.monotonic()
    waiting = server.retrieve(rid)
    assert time.monotonic() - began >= 0.29
    assert waiting.status_code == 408
    assert waiting.json() == {"type": "try_again", "request_id": rid, "queue_state": "active"}
    threading.Timer(0.05, server.engine.gate.set).start()
    assert server.retrieve(rid).json()["metrics"]["step"] == 1.0
    assert server.retrieve(rid).json()["metrics"]["step"] == 1.0, "a lost response must be repeatable"


def test_repeated_keys_run_once(server):
    session_id = server.session()
    model_id = server.model(session_id)
    assert server.model(session_id) == model_id
    sampler_id = base_sampler(server, session_id)
    assert base_sampler(server, session_id) == sampler_id
    with ThreadPoolExecutor(4) as pool:
        steps = list(pool.map(lambda _: server.post("optim_step", optim(model_id, 1)).json(), range(4)))
        samples = list(pool.map(lambda _: server.post("asample", sample(sampler_id, num_samples=2)).json(), range(4)))
    assert len({step["request_id"] for step in steps}) == 1
    assert all(reply == samples[0] for reply in samples)
    assert len(set(samples[0]["sample_sequence_ids"])) == 2
    server.retrieve(steps[0]["request_id"])
    server.retrieve(samples[0]["request_id"])
    kinds = [type(request).__name__ for request in server.engine.log]
    assert (kinds.count("CreateAdapter"), kinds.count("OptimStep"), kinds.count("Sample")) == (1, 1, 1)


def test_unknown_request_ids(server):
    assert server.retrieve("training-1234").status_code == 404
    assert server.retrieve("asample-1234").status_code == 410


def test_nonfinite_metrics_are_left_out(server):
    model_id = server.model(server.session())
    server.engine.adapters[model_id].moment = float("nan")
    reply = server.retrieve(request_id(server.post("optim_step", optim(model_id, 1))))
    assert reply.status_code == 200
    assert reply.json() == {"metrics": {"step": 1.0}}


# ---------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("route", "body", "mention"),
    [
        ("forward_backward", lambda m: pass_body(m, 1, tokens=(1, 999)), "vocabulary"),
        ("forward_backward", lambda m: pass_body(m, 1, targets=(1, 2**40)), "vocabulary"),
        ("optim_step", lambda m: optim(m, 1, learning_rate=-1.0), "learning_rate"),
        ("optim_step", lambda m: optim(m, 1, learning_rate="fast"), "learning_rate"),
        ("optim_step", lambda m: {"model_id": m, "seq_id": 1, "optimizer_params": {"type": "dimuon"}}, "dimuon"),
        ("save_weights", lambda m: {"model_id": m, "seq_id": 1, "path": "a/b"}, "checkpoint name"),
        ("save_weights_for_sampler", lambda m: {"model_id": m, "seq_id": 1, "path": ".."}, "checkpoint name"),
        ("save_weights_for_sampler", lambda m: {"model_id": m, "seq_id": 1}, "sampling_session_seq_id"),
        (
            "load_weights",
            lambda m: {"model_id": m, "seq_id": 1, "path": "tinker://x/weights/y", "optimizer": True},
            "exist",
        ),
    ],
)
def test_refusal_fails_the_future_and_uses_up_its_place(server, route, body, mention):
    model_id = server.model(server.session())
    second = request_id(server.post("optim_step", optim(model_id, 2)))
    body = body(model_id)
    first = request_id(server.post(route, **({"content": body} if isinstance(body, bytes) else {"body": body})))
    error = server.retrieve(first).json()
    assert error["category"] == "user"
    assert mention in error["error"]
    assert server.retrieve(second).json()["metrics"]["step"] == 1.0
    assert [type(request) for request in server.engine.log] == [CreateAdapter, SkipSeq, OptimStep]


class Uploaded:
    """What the server knows of a loss that a client uploaded."""

    rank, inputs = 1, {}

    def __init__(self, name):
        self.name = name


def custom(model_id, seq_id, **config):
    """A pass with loss_fn custom and text or number options."""
    values = {key: {"text" if isinstance(value, str) else "number": value} for key, value in config.items()}
    return pass_body(model_id, seq_id, loss_fn="custom", loss_fn_config_v2=values)


def test_a_custom_loss_is_its_sessions_own(server):
    session_id, other = server.session(), server.session()
    model_id, loss_id = server.model(session_id), f"{session_id}:loss:0"
    server.engine.losses.add(Uploaded(loss_id))
    server.engine.losses.add(Uploaded(f"{other}:loss:0"))
    refused = [
        (custom(model_id, 1), "takes loss_fn_config {'loss_id': text}"),
        (custom(model_id, 2, loss_id=1.0), "takes loss_fn_config {'loss_id': text}"),
        (custom(model_id, 3, loss_id=loss_id, beta=1.0), "takes loss_fn_config {'loss_id': text}"),
        (custom(model_id, 4, loss_id=f"{session_id}:loss:1"), ":loss:1' is unknown in this session"),
        (custom(model_id, 5, loss_id=f"{other}:loss:0"), ":loss:0' is unknown in this session"),
        (custom(model_id, 6, loss_id="ppo"), "'ppo' is unknown in this session"),
        (pass_body(model_id, 7, loss_fn=f"{other}:loss:0"), "is a loss_id"),
        (pass_body(model_id, 8, loss_fn="hinge"), "unknown loss_fn 'hinge'; this server has cross_entropy"),
    ]
    for body, mention in refused:
        error = server.retrieve(request_id(server.post("forward_backward", content=body))).json()
        assert error["category"] == "user"
        assert mention in error["error"]
    reply = server.retrieve(request_id(server.post("forward_backward", content=custom(model_id, 9, loss_id=loss_id))))
    assert reply.headers["content-type"] == "application/x-protobuf"
    assert (server.engine.log[-1].loss, server.engine.log[-1].loss_config) == (loss_id, {})


def test_a_bug_while_decoding_uses_up_its_place_too(server, monkeypatch):
    monkeypatch.setattr("txlab.server.routes.training.to_forward_backward", lambda message: 1 / 0)
    model_id = server.model(server.session())
    error = server.retrieve(request_id(server.post("forward_backward", content=pass_body(model_id, 1)))).json()
    assert error["category"] == "server"
    assert "step" in server.retrieve(request_id(server.post("optim_step", optim(model_id, 2)))).json()["metrics"]


def test_large_bodies_are_decoded_as_well(server):
    model_id = server.model(server.session())
    tokens = np.arange(4000) % 100
    message = pb.ForwardBackwardRequest.FromString(pass_body(model_id, 1, tokens=tokens, targets=tokens))
    message.data.extend([message.data[0]] * 9)
    reply = server.retrieve(request_id(server.post("forward_backward", content=message.SerializeToString())))
    assert reply.headers["content-type"] == "application/x-protobuf"
    output = pb.ForwardBackwardOutput.FromString(reply.content)
    assert len(output.loss_fn_outputs[0].fields["logprobs"].data) == 10 * 4000 * 4


def test_unknown_model_is_404(server):
    responses = [
        server.post("optim_step", optim("nobody:train:0", 1)),
        server.post("forward_backward", content=pass_body("nobody:train:0", 1)),
        server.post("get_info", {"model_id": "nobody:train:0"}),
    ]
    for response in responses:
        assert response.status_code == 404
        assert "nobody:train:0" in response.json()["detail"]


def test_refused_creations_leave_no_model(server):
    session_id = server.session()
    create = {"session_id": session_id, "model_seq_id": 0, "base_model": "fake/model", "lora_config": {"rank": 1000}}
    assert "rank" in server.retrieve(request_id(server.post("create_model", create))).json()["error"]
    assert server.post("get_info", {"model_id": f"{session_id}:train:0"}).status_code == 404
    other = server.post("create_model", create | {"base_model": "no/such"})
    assert other.status_code == 404
    assert "'fake/model'" in other.json()["detail"]
    dimuon = server.post("create_model", create | {"optimizer_config": {"type": "dimuon", "version": 1}})
    assert dimuon.status_code == 400
    assert "dimuon" in dimuon.json()["detail"]


def test_creations_that_the_engine_fails_leave_nothing(server):
    session_id = server.session()
    model_id = server.model(session_id)
    server.engine.broken = (CreateAdapter, TakeSnapshot)
    create = {"session_id": session_id, "model_seq_id": 1, "base_model": "fake/model"}
    save = {"model_id": model_id, "seq_id": 1, "sampling_session_seq_id": 0}
    for route, body in (("create_model", create), ("save_weights_for_sampler", save)):
        error = server.retrieve(request_id(server.post(route, body))).json()
        assert error == {"error": "out of memory", "category": "server"}
    assert server.post("get_info", {"model_id": f"{session_id}:train:1"}).status_code == 404
    assert server.get(f"samplers/{session_id}:sample:0").status_code == 404


def test_unload_frees_a_model(server):
    model_id = server.model(server.session())
    reply = server.retrieve(request_id(server.post("unload_model", {"model_id": model_id})))
    assert reply.json() == {"model_id": model_id, "type": "unload_model"}
    assert server.engine.adapters == {}
    assert server.post("optim_step", optim(model_id, 1)).status_code == 404


def test_adapters_have_names_for_people(server):
    plain, named = server.session(), server.session(display_name="my run")
    server.model(plain)
    server.model(named)
    body = {"session_id": plain, "model_seq_id": 1, "base_model": "fake/model", "user_metadata": {"name": "pig latin"}}
    server.retrieve(request_id(server.post("create_model", body)))
    assert [request.name for request in server.engine.log] == ["adapter 0", "my run adapter 1", "pig latin"]


# ---------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("fields", "mention"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"sampling_params": {"temperature": -1}}, "temperature"),
        ({"sampling_params": {"max_tokens": 0}}, "max_tokens"),
        ({"sampling_params": {"top_p": 2}}, "top_p"),
        ({"sampling_params": {"seed": 2**64}}, "seed"),
        ({"prompt": {"chunks": []}}, "empty"),
        ({"prompt": {"chunks": [{"type": "image", "data": "", "format": "png"}]}}, "image"),
        ({"prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, -7]}]}}, "vocabulary"),
        ({"prompt": {"chunks": [{"type": "encoded_text", "tokens": [2_000_000_000]}]}}, "vocabulary"),
        ({"prompt": {"chunks": [{"type": "encoded_text", "tokens": [2**70]}]}}, "token"),
    ],
)
def test_bad_samples_are_refused_at_once(server, fields, mention):
    response = server.post("asample", sample(base_sampler(server, server.session()), **fields))
    assert response.status_code in (400, 422)
    assert mention in response.json()["detail"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"stop": []}, ()),
        ({"stop": "x"}, ("x",)),
        ({"stop": ["x", "y"]}, ("x", "y")),
        ({"stop": [4]}, (4,)),
    ],
)
def test_stop_reaches_the_engine_as_it_was_meant(server, given, expected):
    sampler_id = base_sampler(server, server.session())
    params = {"seed": 2**63 + 1} | given
    server.retrieve(request_id(server.post("asample", sample(sampler_id, 5 * 10**17, sampling_params=params))))
    assert server.engine.log[-1].params.stop == expected
    assert server.engine.log[-1].params.seed == 2**63 + 1


def test_without_max_tokens_the_context_may_be_filled(server):
    sampler_id = base_sampler(server, server.session())
    body = sample(sampler_id)
    del body["sampling_params"]["max_tokens"]
    server.retrieve(request_id(server.post("asample", body)))
    assert server.engine.log[-1].params.max_tokens == 4096 - 3


def test_unknown_samplers_and_paths(server):
    session_id = server.session()
    assert server.post("asample", sample("nobody:sample:0")).status_code == 404
    assert server.get("samplers/nobody:sample:0").status_code == 404
    cases = [
        ({"model_path": "tinker://m/weights/x"}, 404),
        ({"model_path": "/etc/passwd"}, 400),
        ({"base_model": "no/such"}, 404),
        ({}, 422),
    ]
    for number, (source, status) in enumerate(cases):
        create = {"session_id": session_id, "sampling_session_seq_id": number} | source
        assert server.post("create_sampling_session", create).status_code == status


# ---------------------------------------------------------------------------------------- sessions


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def with_model_and_snapshot(server):
    session_id = server.session()
    model_id = server.model(session_id)
    save = {"model_id": model_id, "seq_id": 1, "sampling_session_seq_id": 0, "kind": "snapshot"}
    sampler_id = server.retrieve(request_id(server.post("save_weights_for_sampler", save))).json()[
        "sampling_session_id"
    ]
    assert sampler_id == f"{session_id}:sample:0"
    return session_id, model_id, sampler_id


def assert_gone(server, session_id, model_id, sampler_id, why):
    wait_until(lambda: not server.engine.adapters and not server.engine.snapshots)
    assert {type(request) for request in server.engine.log[-2:]} == {UnloadAdapter, DropSnapshot}
    body = {"session_id": session_id, "model_seq_id": 9, "base_model": "fake/model"}
    for response in (
        server.post("create_model", body),
        server.post("optim_step", optim(model_id, 2)),
        server.post("asample", sample(sampler_id)),
    ):
        assert response.status_code == 400
        assert why in response.json()["detail"]
    assert server.post("session_heartbeat", {"session_id": session_id}).status_code == 410


def test_finish_frees_what_the_session_held(server):
    ids = with_model_and_snapshot(server)
    assert server.post("session_heartbeat", {"session_id": ids[0]}).status_code == 200
    assert server.post(f"sessions/{ids[0]}/finish", {"reason": {"type": "errored"}, "detail": None}).status_code == 200
    assert server.post(f"sessions/{ids[0]}/finish", {"reason": {"type": "success"}}).status_code == 200
    assert_gone(server, *ids, "errored")


def test_silent_session_ends_and_a_beating_one_lives(engine, tmp_path):
    with serve(engine, tmp_path, ServerSettings(session_seconds=0.5)) as server:
        ids = with_model_and_snapshot(server)
        alive = server.session()

        def beat():
            assert server.post("session_heartbeat", {"session_id": alive}).status_code == 200
            return not engine.adapters

        wait_until(beat)
        assert_gone(server, *ids, "without a heartbeat")
        assert server.post("session_heartbeat", {"session_id": alive}).status_code == 200


def test_close_answers_held_polls(server):
    model_id = server.model(server.session())
    rid = request_id(server.post("optim_step", optim(model_id, 2)))  # waits for 1, for ever
    server.loop.call_soon_threadsafe(server.state.close)
    reply = server.retrieve(rid)
    assert "make a new ServiceClient" in json.loads(reply.content)["error"]


# ----------------------------------------------------------------------------------------- weights


def test_weights_info(server):
    model_id = server.model(server.session())
    save = {"model_id": model_id, "seq_id": 1, "path": "x"}
    path = server.retrieve(request_id(server.post("save_weights", save))).json()["path"]
    info = server.post("weights_info", {"tinker_path": path}).json()
    assert (info["base_model"], info["lora_rank"], info["train_mlp"]) == ("fake/model", 8, True)
    assert server.post("weights_info", {"tinker_path": "tinker://x/weights/y"}).status_code == 404
