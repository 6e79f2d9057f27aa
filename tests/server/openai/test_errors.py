"""Refusals in OpenAI's form, on OpenAI's paths alone; where the API is reached; what is said of it."""

from __future__ import annotations

import httpx
import openai
import pytest


def call(lab, method: str, path: str, key: str | None = None, **options) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or lab.running.key}"} | options.pop("headers", {})
    return httpx.request(method, f"{lab.running.url}{path}", headers=headers, timeout=60, **options)


@pytest.mark.parametrize("prefix", ["/v1", "/oai/api/v1", "/v1/"])
def test_where_the_api_is_reached(lab, prefix):
    client = openai.OpenAI(base_url=lab.running.url + prefix, api_key=lab.running.key, max_retries=0)
    assert lab.base in [model.id for model in client.models.list()]
    assert client.completions.create(model=lab.base, prompt="a", max_tokens=2).choices


def test_a_wrong_key(lab):
    client = lab.client.with_options(api_key="tml-wrong")
    with pytest.raises(openai.AuthenticationError) as refused:
        client.models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model=lab.base, messages=[{"role": "user", "content": "x"}], stream=True)
    assert call(lab, "GET", "/v1/models", headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/v1/nothing", {}, 404),
        ("DELETE", "/v1/models", {}, 405),
        ("POST", "/v1/completions", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ("POST", "/v1/completions", {"content": b"\xff"}, 400),
        ("POST", "/v1/completions", {"json": {"prompt": "x"}}, 400),
        ("POST", "/v1/chat/completions", {"json": [1]}, 400),
        ("POST", "/oai/api/v1/chat/completions", {"json": {"model": "x"}}, 400),
        ("POST", "/v1/embeddings", {"json": {}}, 404),
    ],
)
def test_every_refusal_has_the_same_form(lab, method, path, options, status):
    answer = call(lab, method, path, **options)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["message"]


def test_a_bug_in_a_route_is_no_status_that_clients_retry(lab, monkeypatch):
    def broken(*_args):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("txlab.server.openai.routes.make_plan", broken)
    with pytest.raises(openai.BadRequestError, match="internal error"):
        lab.client.completions.create(model=lab.base, prompt="x")


def test_not_a_number_is_refused(lab):
    content = b'{"model": "%s", "prompt": "x", "temperature": NaN}' % lab.base.encode()
    answer = call(lab, "POST", "/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_tinkers_own_routes_keep_their_form(lab):
    assert call(lab, "GET", "/api/v1/nothing").json().keys() == {"detail"}
    assert call(lab, "GET", "/api/v1/sessions", key="tml-wrong").json().keys() == {"detail"}


def test_the_openapi_page_describes_every_route_and_field(lab):
    document = call(lab, "GET", "/openapi.json").json()
    routes = {path: methods for path, methods in document["paths"].items() if path.startswith("/v1/")}
    assert routes.keys() == {"/v1/models", "/v1/models/{model}", "/v1/completions", "/v1/chat/completions"}
    assert not any(path.startswith("/oai") for path in document["paths"])
    for methods in routes.values():
        for route in methods.values():
            assert route["summary"]
            assert route["description"]
            assert {"200", "400", "401", "404"} <= route["responses"].keys()
            assert "422" not in route["responses"]
    schemas = document["components"]["schemas"]
    for name in (
        "CompletionRequest",
        "ChatRequest",
        "ChatCompletion",
        "Completion",
        "ModelCard",
        "Usage",
        "ErrorDetail",
    ):
        assert schemas[name]["description"]
        for field, schema in schemas[name]["properties"].items():
            assert {"description", "const", "$ref"} & schema.keys(), (name, field)
