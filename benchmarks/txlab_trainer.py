"""The lab's engine as it trains in benchmarks."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.txlab_engine import TxlabEngine
from benchmarks.workloads import Work
from txlab.engine.bus import LabView
from txlab.engine.requests import (
    AdamParams,
    CreateAdapter,
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    OptimStep,
    Request,
)
from txlab.lora.state import LoraConfig
from txlab.profiling.flops import step_flops

ADAM = AdamParams(learning_rate=1e-4)


class TxlabTrainer(TxlabEngine):
    """Cross-entropy, all weights 1."""

    def __init__(self, model: str, dtype: str, compile_cache: Path | None = None):
        super().__init__(model, dtype, compile_cache)
        self._adapters: dict[str, list[tuple[str, count[int]]]] = {}  # by work: model_id, its next seq_id

    def warm_up(self, work: Work) -> None:
        """Make the adapters, compile all programs: a whole round, since its shapes are the engine's choice."""
        self.step(work)

    def step(self, work: Work) -> dict[str, Any]:
        """One round: ``seconds`` from the first request to the last result, ``loss``, share of ``padding``."""
        requests = self._requests(work)
        before = self._bus.view()
        began = time.perf_counter()
        results = [future.result() for future in self._submit(requests)]
        seconds = time.perf_counter() - began
        loss = sum(result.metrics["loss:sum"] for result in results if isinstance(result, ForwardBackwardResult))
        return {"seconds": seconds, "loss": loss, "padding": padding_share(before, self._bus.view())}

    def flops(self, work: Work) -> int:
        """Counted FLOPs of a round."""
        adapters = zip(work.ranks, work.lengths, strict=True)
        return sum(step_flops(self._config, LoraConfig(rank), lengths, work.backward) for rank, lengths in adapters)

    def _requests(self, work: Work) -> list[Request]:
        requests: list[Request] = []
        texts = work.texts(self._config.vocab_size)
        for (model_id, seq_ids), own in zip(self._adapters_of(work), texts, strict=True):
            data = tuple(Datum(t[:-1].astype(np.int32), t[1:].astype(np.int32)) for t in own)
            requests.append(ForwardBackward(model_id, next(seq_ids), data, backward=work.backward))
            if work.backward:
                requests.append(OptimStep(model_id, next(seq_ids), ADAM))
        return requests

    def _adapters_of(self, work: Work) -> list[tuple[str, count[int]]]:
        if work.name not in self._adapters:
            names = [f"{work.name}/{i}" for i in range(len(work.ranks))]
            created = [CreateAdapter(n, LoraConfig(r, seed=0), n) for n, r in zip(names, work.ranks, strict=True)]
            for future in self._submit(created):
                future.result()
            self._adapters[work.name] = [(name, count(1)) for name in names]
        return self._adapters[work.name]


def padding_share(before: LabView, after: LabView) -> float | None:
    """Padding over all positions that the device computed between two views; None where it computed none."""
    positions = after.trained_positions - before.trained_positions
    return 1 - (after.trained_tokens - before.trained_tokens) / positions if positions else None
