"""A running engine of a tiny model, and adapters of it, for parts of the lab that need no server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from txlab.config import EngineSettings, ModelSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.requests import AdamParams, CreateAdapter, Datum, ForwardBackward, OptimStep
from txlab.engine.sampler import Sampler
from txlab.lora.state import LoraConfig
from txlab.models.base import load_base

SECONDS = 120
DATUM = Datum(np.array([5, 6, 7, 8], np.int32), np.array([6, 7, 8, 9], np.int32), {"weights": np.ones(4, np.float32)})


@dataclass
class Parts:
    """An engine and its bus."""

    engine: Engine
    bus: EventBus

    def serving(self) -> SimpleNamespace:
        """What a lab's parts see of a running lab."""
        return SimpleNamespace(engine=self.engine, base=self.engine.base)

    def adapter(self, model_id: str, name: str = "") -> Pupil:
        """A fresh adapter."""
        self.engine.ask(CreateAdapter(model_id, LoraConfig(4, seed=1), name or model_id)).result(SECONDS)
        return Pupil(self.engine, model_id)


@dataclass
class Pupil:
    """An adapter that learns."""

    engine: Engine
    model_id: str
    seq_id: int = 1

    def learn(self, steps: int = 1, rate: float = 0.1) -> None:
        """So many steps; the last is waited for."""
        for _ in range(steps):
            self.engine.ask(ForwardBackward(self.model_id, self.seq_id, (DATUM,)))
            done = self.engine.ask(OptimStep(self.model_id, self.seq_id + 1, AdamParams(rate)))
            self.seq_id += 2
        done.result(SECONDS)


@contextmanager
def running(folder: Path) -> Iterator[Parts]:
    """An engine of the model in ``folder``."""
    bus = EventBus()
    engine = Engine(load_base(ModelSettings(name=str(folder))), EngineSettings(train_tokens=256, sample_rows=8), bus)
    engine.start()
    try:
        yield Parts(engine, bus)
    finally:
        engine.stop()


def watch_batches(monkeypatch) -> list[set]:
    """The adapters of the rows that each run of decode steps is for, in order; None is the base."""
    seen: list[set] = []
    decode = Sampler._decode

    def watched(self: Sampler) -> None:
        ready = [s for s in self._rows.owners if s is not None and s.filled == s.position and not s.stop_reason]
        seen.append({sequence.job.model_id for sequence in ready})
        decode(self)

    monkeypatch.setattr(Sampler, "_decode", watched)
    return seen
