"""The peer of ``benchmarks/sample.py``: transformers, which takes the prompts of a draw as one batch."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from benchmarks.generate_peer import GeneratePeer
from benchmarks.sampling.workloads import Draw


class TransformersSampler:
    """Greedy, one sample of each prompt, without adapters."""

    def __init__(self, model: str, dtype: str):
        self._peer = GeneratePeer.load(model, dtype)

    def warm_up(self, work: Draw) -> None:
        """The first tokens: torch compiles nothing that more would prepare."""
        self.draw(replace(work, max_tokens=min(2, work.max_tokens)))

    def draw(self, work: Draw) -> dict[str, Any]:
        """``seconds``, and the ``tokens`` of each prompt."""
        prompts = work.prompts(self._peer.vocab_size)
        began = time.perf_counter()
        tokens = self._peer.generate(prompts, work.max_tokens)
        return {"seconds": time.perf_counter() - began, "tokens": tokens.tolist()}

    def prefill(self, work: Draw) -> dict[str, Any]:
        """The same of the first tokens alone, by one forward without what ``generate`` adds."""
        prompts = work.prompts(self._peer.vocab_size)
        began = time.perf_counter()
        tokens = self._peer.prefill(prompts)[:, None]
        return {"seconds": time.perf_counter() - began, "tokens": tokens.tolist()}
