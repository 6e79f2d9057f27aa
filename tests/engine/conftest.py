"""One tiny base model and one engine for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.engine.tools import Client
from tests.models.tiny import make_tiny
from txlab.config import EngineSettings, ModelSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.models.base import BaseModel, load_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A tiny Llama whose head is its own: a tied one of random weights mostly repeats the last token."""
    folder = make_tiny(tmp_path_factory.mktemp("engine") / "tiny", tie_word_embeddings=False)
    return load_base(ModelSettings(name=str(folder)))


@pytest.fixture(scope="session")
def bus() -> EventBus:
    """What the shared engine publishes on."""
    return EventBus()


@pytest.fixture(scope="session")
def engine(base: BaseModel, bus: EventBus) -> Iterator[Engine]:
    """A running engine."""
    engine = Engine(base, EngineSettings(train_tokens=256, sample_rows=8), bus)
    engine.start()
    yield engine
    engine.stop()


_names = (f"adapter-{n}" for n in count())


@pytest.fixture
def client(engine: Engine) -> Client:
    """A fresh adapter of rank 8 and seed 1."""
    return Client(engine, next(_names))


@pytest.fixture
def another(engine: Engine) -> Client:
    """A second one, equal to the first."""
    return Client(engine, next(_names))
