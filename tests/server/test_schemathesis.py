"""Requests made from the OpenAPI document: none may find a bug, nor a status that the SDK would retry for ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case

from tests.models.tiny import make_tokenizer
from tests.server.conftest import Running, serve
from tests.server.fake_engine import FakeEngine
from txlab.config import ServerSettings
from txlab.server import tinker_wire_pb2 as wire

SETTINGS = settings(
    max_examples=8,  # per route
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
LONG_POLLS = {"/api/v1/retrieve_future", "/api/v1/retrieve_futures"}  # the only ones that may say 408


@pytest.fixture
def server(tmp_path) -> Iterator[Running]:
    engine = FakeEngine(tmp_path)
    engine.base.tokenizer = make_tokenizer()
    engine.base.config.max_context = engine.limits.max_context
    engine.base.eos_ids = (2,)
    with serve(engine, tmp_path / "store", ServerSettings(poll_seconds=0.2)) as running:
        yield running
    engine.stop()


def real_ids(server: Running) -> dict[str, Any]:
    """Fields that name something which exists, so that requests get past the door."""
    session_id = server.session()
    model_id = server.model(session_id)
    body = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "fake/model"}
    sampler = server.post("create_sampling_session", body).json()["sampling_session_id"]
    request_id = server.post("save_weights", {"model_id": model_id, "path": "kept", "seq_id": 1}).json()["request_id"]
    path = server.result(request_id)["path"]
    return {
        "session_id": session_id,
        "model_id": model_id,
        "base_model": "fake/model",
        "model": "fake/model",
        "sampling_session_id": sampler,
        "sampler_id": sampler,
        "request_id": request_id,
        "tinker_path": path,
        "model_path": path,
        "source_path": path,
        "kind": "weights",
        "name": "kept",
    }


def put_in(fields: Any, ids: dict[str, Any]) -> None:
    """Overwrite the generated ids among ``fields``."""
    if isinstance(fields, dict):
        fields.update({name: ids[name] for name in fields.keys() & ids.keys()})


def exercise(operation: APIOperation, server: Running) -> None:
    """Send what the document allows, with ids of things that exist."""
    ids = real_ids(server)

    @SETTINGS
    @given(case=operation.as_strategy())
    def answers(case: Case) -> None:
        put_in(case.path_parameters, ids)
        put_in(case.body, ids)
        response = case.call(headers={"X-API-Key": server.key}, timeout=20)
        check(response.status_code, case.as_curl_command(), may_wait=operation.path in LONG_POLLS)

    answers()


def check(status: int, request: str, may_wait: bool = False) -> None:
    assert status < 500, request
    assert status not in (409, 429), request
    assert status != 408 or may_wait, request


@pytest.fixture(autouse=True)
def no_bug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A bug in a route is answered with 400 and logged."""
    yield
    failed = [record.getMessage() for record in caplog.get_records("call") if record.name == "txlab.server.errors"]
    assert failed == []


def test_no_request_breaks_the_server(server: Running, subtests: pytest.Subtests) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    # Not these: a binary body, which has a test below, and a file that the fake engine's weights do not make.
    schema = schema.exclude(path_regex="forward_backward$|archive.tar$")
    for result in schema.get_all_operations():
        operation = result.ok()
        with subtests.test(operation.label):
            exercise(operation, server)


tensors = st.builds(
    wire.Tensor,
    dense=st.binary(max_size=24),
    dtype=st.sampled_from([0, 1, 2, 3, 4]),
    shape=st.lists(st.integers(-1, 3), max_size=3),
)
chunks = st.builds(wire.Chunk, encoded_text=st.builds(wire.EncodedTextChunk, tokens=st.binary(max_size=16)))
names = st.sampled_from(["target_tokens", "weights", "logprobs", "advantages", "other"])
data = st.builds(
    wire.Datum, model_input=st.lists(chunks, max_size=2), loss_fn_inputs=st.dictionaries(names, tensors, max_size=4)
)
passes = st.builds(
    wire.ForwardBackwardRequest,
    seq_id=st.integers(-1, 1 << 30),
    data=st.lists(data, max_size=2),
    loss_fn=st.sampled_from(["cross_entropy", "ppo", "nonsense", ""]),
    loss_fn_config=st.dictionaries(st.text(max_size=5), st.floats(), max_size=2),
    forward_only=st.booleans(),
)


def test_no_forward_backward_body_breaks_the_server(server: Running) -> None:
    model_id = real_ids(server)["model_id"]

    def send(body: bytes) -> None:
        response = server.post("forward_backward", content=body, headers={"Content-Type": "application/x-protobuf"})
        check(response.status_code, repr(body))

    @settings(SETTINGS, max_examples=60)
    @given(request=passes, garbage=st.binary(max_size=40))
    def answers(request: wire.ForwardBackwardRequest, garbage: bytes) -> None:
        request.model_id = model_id
        send(request.SerializeToString())
        send(garbage)

    answers()
