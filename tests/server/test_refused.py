"""A request that is refused at once uses up its place all the same: the SDK counts on, and nothing waits for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
import zstandard

from tests.server.test_api import pass_body, request_id
from txlab.engine.requests import SkipSeq
from txlab.server.routes import training

ZSTD = {"Content-Encoding": "zstd"}
JSON = {"Content-Type": "application/json"}
LOSS_INPUTS = {
    "target_tokens": {"data": [2, 3, 4], "dtype": "int64", "shape": [3]},
    "weights": {"data": [1.0, 1.0, 1.0], "dtype": "float32", "shape": [3]},
}
DATA = [{"loss_fn_inputs": LOSS_INPUTS, "model_input": {"chunks": [{"tokens": [1, 2, 3], "type": "encoded_text"}]}}]


def json_pass(field: str, model_id: str, seq_id: int) -> bytes:
    """A pass as SDK 0.24.1 sends it."""
    body = {field: {"data": DATA, "loss_fn": "cross_entropy"}, "model_id": model_id, "seq_id": seq_id}
    return json.dumps(body, separators=(",", ":")).encode()


def compressed(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(body)


def json_body(**fields) -> Callable[[str, int], bytes]:
    return lambda model_id, seq_id: json.dumps({"model_id": model_id, "seq_id": seq_id} | fields).encode()


REFUSED = {
    "optim_step without numbers": ("optim_step", json_body(adam_params="fast"), JSON, 422),
    "save_weights without a name": ("save_weights", json_body(), JSON, 422),
    "save_weights_for_sampler of no kind": ("save_weights_for_sampler", json_body(kind="hot"), JSON, 422),
    "save_weights_external without a name": ("save_weights_external", json_body(path=3), JSON, 422),
    "load_weights that says too little": ("load_weights", json_body(path="tinker://a/weights/b"), JSON, 422),
    "a pass in JSON": ("forward_backward", lambda m, n: json_pass("forward_backward_input", m, n), JSON, 400),
    "a forward in JSON": ("forward", lambda m, n: json_pass("forward_input", m, n), JSON, 404),
    "a pass that breaks off": ("forward_backward", lambda m, n: pass_body(m, n)[:-5], {}, 400),
    "a pass with rubbish in it": ("forward_backward", lambda m, n: pass_body(m, n) + b"\xff\xff", {}, 400),
    "zstd with rubbish in it": ("forward_backward", lambda m, n: compressed(pass_body(m, n) + b"\xff"), ZSTD, 400),
    "zstd that breaks off": ("forward_backward", lambda m, n: compressed(pass_body(m, n))[:-2], ZSTD, 400),
    "zstd that is too large": (
        "forward_backward",
        lambda m, n: compressed(pass_body(m, n, tokens=range(9000))),
        ZSTD,
        400,
    ),
}


@pytest.fixture
def model_id(server):
    return server.model(server.session())


def check_goes_on(server, model_id: str, seq_id: int) -> None:
    """The request at ``seq_id`` is answered; fails where it waits for one that will never come."""
    save = {"model_id": model_id, "seq_id": seq_id, "path": f"save-{seq_id}"}
    answer = server.retrieve(request_id(server.post("save_weights", save)))
    assert answer.status_code == 200, f"the request at {seq_id} waits: {answer.text}"
    assert answer.json()["path"].endswith(f"save-{seq_id}")


@pytest.mark.parametrize("case", REFUSED)
def test_the_next_request_runs_after_a_refusal(server, model_id, monkeypatch, case):
    monkeypatch.setattr(training, "MAX_BODY", 10_000)
    route, body, headers, status = REFUSED[case]
    for _ in range(2):  # a client whose connection broke sends it again
        answer = server.post(route, content=body(model_id, 1), headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"]
    check_goes_on(server, model_id, 2)
    assert sum(isinstance(request, SkipSeq) for request in server.engine.log) == 1


def test_a_refused_request_that_is_mended_under_its_old_number_fails_as_it_did(server, model_id):
    broken = server.post("save_weights", content=json_body(path=3)(model_id, 1), headers=JSON)
    mended = server.post("save_weights", content=json_body(path="a")(model_id, 1), headers=JSON)
    assert server.retrieve(request_id(mended)).json()["error"] == broken.json()["detail"]
    check_goes_on(server, model_id, 2)


def test_a_damaged_copy_of_a_request_that_was_taken_changes_nothing(server, model_id):
    server.engine.gate.clear()
    first = request_id(server.post("forward_backward", content=pass_body(model_id, 1)))
    assert server.post("forward_backward", content=pass_body(model_id, 1) + b"\xff").status_code == 400
    server.engine.gate.set()
    assert server.retrieve(first).status_code == 200
    check_goes_on(server, model_id, 2)
    assert not any(isinstance(request, SkipSeq) for request in server.engine.log)


def test_a_bug_in_a_route_costs_one_request_only(server, model_id, monkeypatch):
    monkeypatch.setattr(training, "_decode", lambda *arguments: 1 / 0)
    assert server.post("forward_backward", content=pass_body(model_id, 1)).status_code == 400
    check_goes_on(server, model_id, 2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"model_id": 3, "seq_id": 1}',
        b'{"model_id": "nobody", "seq_id": 1}',
        b'{"model_id": "MODEL", "seq_id": 0}',
        b'{"model_id": "MODEL", "seq_id": "first"}',
        b'{"model_id": "MODEL", "seq_id": 1',
        os.urandom(200),
    ],
)
@pytest.mark.parametrize("route", ["optim_step", "forward_backward"])
def test_a_body_that_names_no_place_uses_up_none(server, model_id, route, body):
    content = body.replace(b"MODEL", model_id.encode())
    assert server.post(route, content=content, headers=JSON).status_code in {400, 404, 422}
    check_goes_on(server, model_id, 1)
