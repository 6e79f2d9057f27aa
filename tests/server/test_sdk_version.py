"""SDKs that are too old to be served are told so in their first call; all others are let in."""

from __future__ import annotations

import httpx
import pytest

# What SDKs sent first, as recorded.
HEADERS_0_24_1 = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "AsyncTinker/Python 0.24.1",
    "X-Stainless-Package-Version": "0.24.1",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.11.7",
    "X-Stainless-Async": "async:asyncio",
    "X-Idempotency-Key": "stainless-python-retry-14f5657d-2fb8-496e-af36-77165f720584",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "60",
}
FIRST_CALLS = {
    "0.24.1": ("client/config", HEADERS_0_24_1, {"sdk_version": "0.24.1"}),
    "0.6.0": (
        "create_session",
        HEADERS_0_24_1 | {"User-Agent": "AsyncTinker/Python 0.6.0", "X-Stainless-Package-Version": "0.6.0"},
        {"tags": [], "user_metadata": {}, "sdk_version": "0.6.0", "type": "create_session"},
    ),
}


@pytest.mark.parametrize("version", FIRST_CALLS)
def test_an_old_sdk_is_refused_in_its_first_call(server, version):
    route, headers, body = FIRST_CALLS[version]
    answer = server.post(route, body, headers=headers)
    assert answer.status_code == 400  # which the SDK raises at once
    assert int(answer.headers["content-length"]) > 0
    assert "tinker >= 0.25" in answer.json()["detail"]
    assert version in answer.json()["detail"]
    assert "pip install" in answer.json()["detail"]


@pytest.mark.parametrize("route", ["client/config", "create_session"])
def test_the_version_in_the_body_is_enough(server, route):
    """As where a proxy puts a name of its own into the header."""
    answer = server.post(route, {"sdk_version": "0.24.1"}, headers={"User-Agent": "proxy/1"})
    assert answer.status_code == 400
    assert "tinker >= 0.25" in answer.json()["detail"]


@pytest.mark.parametrize("route", ["create_model", "optim_step", "asample", "training_runs"])
def test_the_header_is_enough_on_every_route(server, route):
    method = "GET" if route == "training_runs" else "POST"
    headers = {"X-API-Key": server.key, "User-Agent": "AsyncTinker/Python 0.24.1"}
    answer = httpx.request(method, f"{server.url}/api/v1/{route}", headers=headers)
    assert answer.status_code == 400
    assert "tinker >= 0.25" in answer.json()["detail"]


@pytest.mark.parametrize("version", ["0.25.0", "0.38.0", "0.40.0.dev1+local", "0.100.0", "1.0", "2.0.0rc1", "unknown"])
def test_all_others_are_let_in(server, version):
    headers = {"User-Agent": f"AsyncTinker/Python {version}"}
    for route in ("client/config", "create_session"):
        assert server.post(route, {"sdk_version": version}, headers=headers).status_code == 200


@pytest.mark.parametrize("body", [None, {}, {"sdk_version": None}, {"sdk_version": "0.38.0", "something": "new"}])
def test_a_client_without_a_version_is_let_in(server, body):
    assert server.post("client/config", body).status_code == 200


def test_the_version_of_other_programs_is_their_own(server):
    headers = {"User-Agent": "OpenAI/Python 0.20.0", "X-Stainless-Package-Version": "0.20.0"}
    assert server.post("create_session", {"tags": []}, headers=headers).status_code == 200


@pytest.mark.parametrize("route", ["forward_backward", "forward"])
def test_a_pass_in_json_names_the_sdk_that_sends_no_json(server, route):
    model_id = server.model(server.session())
    answer = server.post(route, {"model_id": model_id, "seq_id": 1, "forward_backward_input": {"data": []}})
    assert "tinker >= 0.25" in answer.json()["detail"]
