"""The lab's engine as it samples in benchmarks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sampling.trace import Trace, Visit, play
from benchmarks.sampling.workloads import RANK, Draw
from benchmarks.txlab_engine import TxlabEngine
from txlab.engine.requests import CreateAdapter, FreezeAdapter, Result, Sample, SampleResult, SamplingParams
from txlab.lora.state import LoraConfig


class TxlabSampler(TxlabEngine):
    """Stops are off: every sequence gets all of its tokens."""

    def __init__(self, model: str, dtype: str, compile_cache: Path | None = None):
        super().__init__(model, dtype, compile_cache)
        self._snapshots: list[str] = []
        self._texts = np.random.default_rng(0)

    def draw(self, work: Draw) -> dict[str, Any]:
        """``seconds`` from first request to last result, ``tokens`` of each sample, ``cached`` tokens of prompts."""
        snapshots = self._snapshots_of(work.requests) if work.adapters else [None] * work.requests
        params = SamplingParams(work.max_tokens, temperature=0.0, stop=())
        requests = [
            Sample(snapshot, prompt.astype(np.int32), work.samples, params)
            for snapshot, prompt in zip(snapshots, work.prompts(self._config.vocab_size), strict=True)
        ]
        began = time.perf_counter()
        results = [_sampled(future) for future in self._submit(requests)]
        return {
            "seconds": time.perf_counter() - began,
            "tokens": [sequence.tokens.tolist() for result in results for sequence in result.sequences],
            "cached": sum(result.prompt_cache_hit_tokens for result in results),
        }

    def trace(self, work: Trace) -> dict[str, Any]:
        """What ``trace.figures`` says, and the ``programs`` compiled meanwhile. Prompts are new ones in every call."""
        snapshots = [*self._snapshots_of(work.adapters), None]  # -1, the base, is the last

        def request(visit: Visit) -> Sample:
            text = self._texts.integers(self._config.vocab_size, size=visit.prompt_tokens, dtype=np.int32)
            params = SamplingParams(visit.max_tokens, stop=())
            return Sample(snapshots[visit.adapter], text, 1, params, on_tokens=visit.tell)

        def submit(visits: Sequence[Visit]) -> list[Future[Result]]:
            return self._submit([request(visit) for visit in visits])

        before = self._bus.view().compiles
        played = play(work.visits(), submit, self._settings.sample_rows if work.static else None)
        return played | {"programs": self._bus.view().compiles - before}

    def _snapshots_of(self, count: int) -> list[str]:
        """So many snapshots, each of an adapter of its own."""
        for i in range(len(self._snapshots), count):
            made = CreateAdapter(f"adapter-{i}", LoraConfig(RANK, seed=i), f"adapter-{i}")
            for future in self._submit([made, FreezeAdapter(made.model_id, f"snapshot-{i}")]):
                future.result()
            self._snapshots.append(f"snapshot-{i}")
        return self._snapshots[:count]


def _sampled(future: Future[Result]) -> SampleResult:
    result = future.result()
    assert isinstance(result, SampleResult)
    return result
