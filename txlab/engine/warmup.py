"""Compiles the likely programs of training before they are asked for, beside the engine and only while it is idle."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np

from txlab.engine.losses import LOSSES
from txlab.engine.packing import JOINED, MIN_WIDTH, Item, Scored, head_slices, pack
from txlab.engine.requests import AdamParams, Datum
from txlab.engine.trainer import Trainer, accumulate, optim_step
from txlab.lora.adapter import Adapter, initial_weights, zero_gradient
from txlab.lora.state import LoraConfig
from txlab.models.base import BaseModel
from txlab.models.config import BLOCK
from txlab.models.mesh import replicated
from txlab.threads import daemon_thread

RANK = 32  # what the SDK asks for unless told otherwise

log = logging.getLogger(__name__)


class WarmUp:
    """A rehearsal on its own thread, which pauses between programs while ``idle`` is not set.

    A request never waits for it: at worst one compilation shares the cores with it, and what it asks for is there.
    """

    def __init__(self, rehearsal: Iterator[object], idle: threading.Event, done: Callable[[], None] = lambda: None):
        self._rehearsal, self._idle, self._done = rehearsal, idle, done
        self._stopping = False
        self._thread = daemon_thread(self._run, "txlab-warm-up")
        self._thread.start()

    def stop(self) -> None:
        """End it after the program that is being compiled."""
        self._stopping = True
        self._idle.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for _ in self._rehearsal:
                self._idle.wait()
                if self._stopping:
                    return
            self._done()
        except Exception:
            log.warning("warming up failed; programs are compiled as they are needed", exc_info=True)


def rehearse(base: BaseModel, train_tokens: int, rank: int = RANK) -> Iterator[None]:
    """Run each program of a training step of short sequences once, with a scratch adapter; yields before each."""
    trainer = Trainer(base.decoder, train_tokens, depth=1)  # one layer's programs are those of all
    lora, loss = LoraConfig(rank=rank, seed=0), LOSSES["cross_entropy"]
    yield
    adapter = Adapter(lora, initial_weights(base.config, lora, replicated(base.mesh)))
    tokens = np.zeros(BLOCK, np.int32)
    for lengths in (*([BLOCK] * n for n in (JOINED // BLOCK, 2, 1)), [MIN_WIDTH]):
        data = [Datum(tokens[:n], tokens[:n]) for n in lengths]
        items = [Item(0, index, 0, datum, loss, {}) for index, datum in enumerate(data)]
        batch = next(pack(items, train_tokens))
        yield
        activations = trainer.forward(batch, [adapter], backward=True)
        for part in head_slices([Scored(p, loss, {"weights": 1.0}, True) for p in batch.placements], train_tokens):
            yield
            trainer.score(activations, part)
        yield
        jax.block_until_ready(list(trainer.backward(activations)))
    yield
    adapter.gradient = accumulate(zero_gradient(adapter.weights), zero_gradient(adapter.weights))
    yield
    optim_step(adapter, AdamParams())
