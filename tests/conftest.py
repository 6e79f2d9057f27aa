"""Fixtures shared by all packages' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import txlab.models  # noqa: F401 - before anything imports transformers: it keeps that quiet
from tests.models.tiny import make_tiny
from txlab.config import ModelSettings
from txlab.models.base import BaseModel, load_base

MARKS = {  # mark: fixtures, parameters and names of a module; a test that uses one of them gets the mark
    "browser": {"chromium", "CHROMIUM"},
    "kernel": {"open_kernel", "kernel", "serving"},
    "parity": {"torch", "peft", "cookbook"},
    "slow": {  # a real engine, which compiles, or processes of their own
        *("Engine", "Lab", "Sampler", "Trainer", "base", "full_logits", "lab", "parts", "running"),
        *("Popen", "schemathesis", "subprocess"),
    },
    "smollm2": {"smollm2"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests, and cells of notebooks, by what they use."""
    for item in items:
        if not isinstance(item, pytest.Function):
            item.add_marker("notebook")
            continue
        used = {*item.fixturenames, *vars(item.module), *_parameters(item)}
        for mark, names in MARKS.items():
            if names & used:
                item.add_marker(mark)


def _parameters(item: pytest.Function) -> set[str]:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {value for value in values if isinstance(value, str)}


@pytest.fixture(scope="session")
def torch() -> Any:
    """The reference of parity tests; without the extra ``parity`` they are skipped."""
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def peft() -> Any:
    """The reference LoRA; without the extra ``parity`` its tests are skipped."""
    return pytest.importorskip("peft")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama with a real tokenizer; each xdist worker makes its own."""
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def smollm2() -> BaseModel:
    """The default model, fetched into the user's cache the first time."""
    return load_base(ModelSettings())
