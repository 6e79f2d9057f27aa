"""The OpenAPI document: every route is described, and every body has an example that is accepted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from txlab.config import ServerSettings
from txlab.server.app import create_app
from txlab.store.store import Store


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    store = Store(Path(tmp_path_factory.mktemp("store")))
    engine: Any = SimpleNamespace(base=SimpleNamespace(name="model"))
    yield create_app(engine, store, ServerSettings(api_key="tml-docs")).openapi()
    store.close()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def of_fields(body: dict[str, Any]) -> dict[str, Any]:
    """The example that the fields' own make together."""
    return {name: field["examples"][0] for name, field in body["properties"].items() if "examples" in field}


def test_every_route_has_a_summary_and_a_description(document):
    bare = [
        name for name, operation in operations(document) if not operation["summary"] or not operation["description"]
    ]
    assert bare == []


def test_every_json_body_has_an_example_that_fits_it(document):
    for name, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            continue
        schema = content["application/json"]["schema"]
        body = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        examples = body.get("examples") or [of_fields(body)]
        whole = {"components": document["components"]} | body
        for shown in examples:
            errors = [error.message for error in Draft202012Validator(whole).iter_errors(shown)]
            assert errors == [], f"{name}: {json.dumps(shown)}"
            assert shown.keys() <= body["properties"].keys(), name


def references(node: Any) -> Iterator[str]:
    """Every ``$ref`` below a node."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_every_reference_resolves_in_the_document(document):
    found = set(references(document))
    assert "#/components/schemas/PromptChunk" in found
    for reference in found:
        assert reference.startswith("#/"), reference
        node = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]
