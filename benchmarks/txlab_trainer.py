"""The lab's engine as a benchmark drives it: requests in, results out, no HTTP between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.measure import numpy_matmul_gflops, xla_matmul_gflops
from benchmarks.workloads import Work
from txlab.config import EngineSettings, ModelSettings
from txlab.engine.engine import Engine
from txlab.engine.events import EventBus, LabView
from txlab.engine.requests import (
    AdamParams,
    CreateAdapter,
    Datum,
    DropSnapshot,
    ForwardBackward,
    ForwardBackwardResult,
    OptimStep,
    Request,
    Result,
)
from txlab.lora.state import LoraConfig
from txlab.models.base import load_base
from txlab.profiling.flops import step_flops

ADAM = AdamParams(learning_rate=1e-4)
CACHE_HIT = "/jax/compilation_cache/cache_hits"


class TxlabTrainer:
    """An engine of its own, with default settings. Cross-entropy, all weights 1."""

    def __init__(self, model: str, dtype: str, compile_cache: Path | None = None):
        self._cache_hits = 0
        jax.monitoring.register_event_listener(self._count_cache_hit)
        self._bus = EventBus()
        base = load_base(ModelSettings(name=model, dtype=dtype))
        self._config = base.config
        self._engine = Engine(base, EngineSettings(compile_cache=compile_cache), self._bus)
        self._engine.start()
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

    def rates(self) -> dict[str, float]:
        """GFLOP/s of matrix products at this moment."""
        return {"numpy": numpy_matmul_gflops(), "xla": xla_matmul_gflops()}

    def compiles(self) -> dict[str, float]:
        """Programs that this process needed so far, how many of them the cache had, seconds of making or fetching."""
        view = self._bus.view()
        return {"programs": view.compiles, "from_cache": self._cache_hits, "seconds": view.compile_seconds}

    def close(self) -> None:
        """Stop the engine."""
        self._engine.stop()
        jax.monitoring.unregister_event_listener(self._count_cache_hit)

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

    def _submit(self, requests: Sequence[Request]) -> list[Future[Result]]:
        """Hand over requests from the engine's own thread, so that it finds them together, as a busy engine would."""
        futures: list[Future[Result]] = [Future() for _ in requests]

        def submit(_: Result | Exception) -> None:
            for request, future in zip(requests, futures, strict=True):
                self._engine.submit(request, partial(_settle, future))

        self._engine.submit(DropSnapshot("none"), submit)
        return futures

    def _count_cache_hit(self, event: str, **_: str | int) -> None:
        self._cache_hits += event == CACHE_HIT


def padding_share(before: LabView, after: LabView) -> float | None:
    """Padding over all positions that the device computed between two views; None where it computed none."""
    positions = after.trained_positions - before.trained_positions
    return 1 - (after.trained_tokens - before.trained_tokens) / positions if positions else None


def _settle(future: Future[Result], result: Result | Exception) -> None:
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
