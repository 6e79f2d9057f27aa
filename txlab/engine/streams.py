"""Batches of training that run side by side on one device."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait

from txlab.config import EngineSettings
from txlab.engine.trainer import Trainer, keep_tokens
from txlab.models.base import BaseModel
from txlab.models.config import BLOCK
from txlab.threads import hide_from_debugger


class Streams:
    """A trainer with ``count`` threads, each of which runs batches of ``tokens`` positions.

    On a CPU a second stream computes while the first is between two operations, or in one that uses a single core.
    """

    def __init__(self, trainer: Trainer, tokens: int, count: int):
        self.trainer, self.tokens, self.count = trainer, tokens, count
        self._pool = ThreadPoolExecutor(count, "txlab-stream", _hide) if count > 1 else None

    def run(self, work: Callable[..., object], *arguments: Iterable) -> None:
        """Call ``work`` for each of the zipped ``arguments``, as ``map`` does; returns when all have ended.

        Raises what the first of them raised.
        """
        calls = list(zip(*arguments, strict=False))
        if self._pool is None or len(calls) < 2:
            for call in calls:
                work(*call)
            return
        futures = [self._pool.submit(work, *call) for call in calls]
        wait(futures)
        for future in futures:
            future.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def streams_for(base: BaseModel, settings: EngineSettings) -> Streams:
    """As the settings say; else two on a CPU of several cores, while an accelerator runs one program after another.

    Together they keep the activations of ``train_tokens``, or of what fits into ``train_bytes``.
    """
    on_cpu = base.mesh.devices.flat[0].platform == "cpu"
    count = settings.train_streams or (2 if on_cpu and (os.cpu_count() or 1) > 1 else 1)
    itemsize = base.decoder.head.dtype.itemsize
    kept = settings.train_tokens or keep_tokens(base.config, itemsize, settings.train_bytes)
    tokens = max(BLOCK, kept // count)
    return Streams(Trainer(base.decoder, tokens), tokens, count)


def _hide() -> None:
    hide_from_debugger(threading.current_thread())
