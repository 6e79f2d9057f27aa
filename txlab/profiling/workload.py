"""The standard training step: one adapter, one batch of random tokens, through the engine as any client's."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from txlab.engine.engine import Engine
from txlab.engine.requests import (
    AdamParams,
    CreateAdapter,
    Datum,
    ForwardBackward,
    Limits,
    OptimStep,
    RequestError,
    UnloadAdapter,
)
from txlab.lora.state import LoraConfig


@dataclass(frozen=True, slots=True)
class StepShape:
    """Size of a training step."""

    rows: int = 8  # sequences
    length: int = 128  # tokens of each
    rank: int = 32  # of the adapter, on all linear layers

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.length

    @property
    def lora(self) -> LoraConfig:
        """The adapter's configuration."""
        return LoraConfig(self.rank, seed=0)

    def check(self, limits: Limits) -> None:
        """Raise RequestError where an engine of these limits would refuse such a step."""
        most = {"rows": None, "length": limits.max_context, "rank": limits.max_rank}
        for name, limit in most.items():
            value = getattr(self, name)
            if value < 1 or (limit is not None and value > limit):
                raise RequestError(f"{name} is {value}: expected {'at least 1' if limit is None else f'1 to {limit}'}")


class TrainingStep:
    """One step of an adapter, to be taken any number of times."""

    def __init__(self, engine: Engine, model_id: str, shape: StepShape):
        rng = np.random.default_rng(0)
        texts = rng.integers(0, engine.base.config.vocab_size, (shape.rows, shape.length + 1), np.int32)
        self._data = tuple(Datum(text[:-1], text[1:]) for text in texts)
        self._engine, self._model_id = engine, model_id
        self._taken = 0

    def __call__(self) -> float:
        """Take the step; seconds from its submission to its result."""
        seq_id = 1 + 2 * self._taken
        self._taken += 1
        start = time.perf_counter()
        passed = self._engine.ask(ForwardBackward(self._model_id, seq_id, self._data))
        stepped = self._engine.ask(OptimStep(self._model_id, seq_id + 1, AdamParams()))
        passed.result()
        stepped.result()
        return time.perf_counter() - start


@contextmanager
def training_step(engine: Engine, shape: StepShape) -> Iterator[TrainingStep]:
    """A step of an adapter that is there meanwhile, beside all others. RequestError where the engine refuses it."""
    shape.check(engine.limits)
    model_id = f"bench-{secrets.token_hex(4)}"
    engine.ask(CreateAdapter(model_id, shape.lora, "bench")).result()
    try:
        yield TrainingStep(engine, model_id, shape)
    finally:
        engine.ask(UnloadAdapter(model_id)).result()
