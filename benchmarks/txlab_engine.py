"""The lab's engine as benchmarks drive it: requests in, results out, no HTTP between."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import jax

from benchmarks.measure import numpy_matmul_gflops, xla_matmul_gflops
from txlab.config import EngineSettings, ModelSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.requests import DropSnapshot, Request, Result
from txlab.models.base import load_base

CACHE_HIT = "/jax/compilation_cache/cache_hits"


class TxlabEngine:
    """An engine of its own, with default settings."""

    def __init__(self, model: str, dtype: str, compile_cache: Path | None = None):
        self._cache_hits = 0
        jax.monitoring.register_event_listener(self._count_cache_hit)
        self._bus = EventBus()
        base = load_base(ModelSettings(name=model, dtype=dtype))
        self._config = base.config
        self._settings = EngineSettings(compile_cache=compile_cache)
        self._engine = Engine(base, self._settings, self._bus)
        self._engine.start()

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

    def _submit(self, requests: Sequence[Request]) -> list[Future[Result]]:
        """Hand over requests from the engine's own thread, so that it finds them together, as a busy engine would."""
        asked: Future[list[Future[Result]]] = Future()
        self._engine.submit(
            DropSnapshot("none"), lambda _: asked.set_result([self._engine.ask(request) for request in requests])
        )
        return asked.result()

    def _count_cache_hit(self, event: str, **_: str | int) -> None:
        self._cache_hits += event == CACHE_HIT
