"""Short hands of the engine's tests."""

from __future__ import annotations

from concurrent.futures import Future
from itertools import count

import numpy as np
import pytest

from tests.models.compute import segment_attention
from txlab.engine.engine import Engine
from txlab.engine.requests import (
    AdamParams,
    CreateAdapter,
    Datum,
    ForwardBackward,
    OptimStep,
    Request,
    RequestError,
    SamplingParams,
    TakeSnapshot,
)
from txlab.lora.state import LoraConfig
from txlab.models.base import BaseModel


def ask(engine: Engine, request: Request) -> Future:
    """Submit a request; a future of its result."""
    return engine.ask(request)


def answer(engine: Engine, request: Request):
    """Submit a request and wait."""
    return ask(engine, request).result(timeout=120)


def tokens(n: int, seed: int = 0) -> np.ndarray:
    """N token ids of the tiny models' vocabulary, without its special ones."""
    return np.random.default_rng(seed).integers(10, 300, n).astype(np.int32)


def datum(n: int, seed: int = 0, **inputs) -> Datum:
    """A next-token datum of n positions; inputs are arrays, or one number for all positions."""
    text = tokens(n + 1, seed)
    return Datum(text[:-1], text[1:], {k: np.broadcast_to(np.float32(v), n) for k, v in inputs.items()})


def slow_logits(base: BaseModel, text: np.ndarray) -> np.ndarray:
    """Logits (T, V) float64 of every position of a text, by one plain forward without a cache."""
    positions = np.arange(len(text))[None]
    hidden, _ = base.decoder(text[None], positions, segment_attention(np.ones_like(positions)))
    return np.asarray(base.decoder.unembed(hidden)[0], np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in NumPy."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def greedy(n: int, **kw) -> SamplingParams:
    """Up to n tokens without randomness, and without EOS unless a stop is given."""
    return SamplingParams(max_tokens=n, temperature=0.0, **({"stop": ()} | kw))


class Client:
    """One adapter of an engine, with its own count of seq_ids."""

    def __init__(self, engine: Engine, model_id: str, **lora):
        self.engine, self.model_id = engine, model_id
        self._seq = count(1)
        answer(engine, CreateAdapter(model_id, LoraConfig(**({"rank": 8, "seed": 1} | lora)), model_id))

    def send(self, kind, **fields) -> Future:
        """Submit a sequenced request of this adapter."""
        return ask(self.engine, kind(model_id=self.model_id, seq_id=next(self._seq), **fields))

    def begin(self, *data: Datum, **fields) -> Future:
        """Submit a forward_backward."""
        return self.send(ForwardBackward, data=data, **fields)

    def forward_backward(self, *data: Datum, **fields):
        return self.begin(*data, **fields).result(120)

    def forward(self, *data: Datum, **fields):
        return self.forward_backward(*data, backward=False, **fields)

    def step(self, adam):
        return self.send(OptimStep, adam=adam).result(120)

    def snapshot(self, snapshot_id: str) -> str:
        self.send(TakeSnapshot, snapshot_id=snapshot_id).result(120)
        return snapshot_id

    def nothing_is_left(self) -> None:
        """A pass failed or was dropped: its step is refused, and no gradient of it enters the next one."""
        with pytest.raises(RequestError, match="this optim_step was refused, and nothing has moved"):
            self.step(AdamParams())
        self.forward_backward(datum(5, weights=0.0))
        assert self.step(AdamParams()).metrics["grad_norm"] == 0
