"""Fixtures shared by all packages' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import txlab.models  # noqa: F401 - before anything imports transformers: it keeps that quiet
from tests.models.tiny import make_tiny
from txlab.config import ModelSettings
from txlab.models.base import BaseModel, load_base


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama with a real tokenizer; each xdist worker makes its own."""
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def smollm2() -> BaseModel:
    """The default model, fetched into the user's cache the first time."""
    return load_base(ModelSettings())
