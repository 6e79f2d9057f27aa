"""What training may cost: programs, memory. The promises that a change must not break unnoticed."""

from __future__ import annotations

import gc
from collections import Counter

import jax
import numpy as np
import pytest

from tests.engine.tools import Client, answer, datum
from txlab.config import EngineSettings
from txlab.engine.bus import EventBus
from txlab.engine.compiles import watch_compiles
from txlab.engine.engine import Engine
from txlab.engine.requests import AdamParams, CreateAdapter, OptimStep, UnloadAdapter
from txlab.lora.adapter import tree_bytes
from txlab.lora.state import LoraConfig

LOSSES = ("cross_entropy", "importance_sampling", "ppo", "cispo")
MOST_PROGRAMS = 12


@pytest.fixture
def own(base):
    """An engine whose shapes no other test shares. It keeps no earlier steps: these have a budget of their own."""
    engine = Engine(base, EngineSettings(train_tokens=2048, kept_bytes=0), EventBus())
    engine.start()
    yield engine
    engine.stop()


def random_data(rng: np.random.Generator, loss: str) -> list:
    lengths = np.exp(rng.uniform(np.log(16), np.log(513), rng.integers(1, 4))).astype(int)
    policy = {} if loss == "cross_entropy" else {"logprobs": -3.0, "advantages": 1.0}
    return [datum(n, int(n), **policy) for n in lengths]


def test_two_hundred_steps_of_all_shapes_compile_few_programs(own):
    rng, programs = np.random.default_rng(0), []
    clients = [Client(own, f"adapter-{n}", rank=3) for n in range(8)]
    unwatch = watch_compiles(lambda name, _: programs.append(name))
    for _ in range(200):
        chosen = rng.permutation(len(clients))[: rng.integers(1, len(clients) + 1)]
        passes = [n for n in chosen for _ in range(rng.integers(1, 3))]  # a gradient of one, or accumulated of two
        losses = [LOSSES[rng.integers(len(LOSSES))] for _ in passes]
        sent = [clients[n].begin(*random_data(rng, loss), loss=loss) for n, loss in zip(passes, losses, strict=True)]
        for future in [*sent, *(clients[n].send(OptimStep, adam=AdamParams()) for n in chosen)]:
            future.result(120)
    unwatch()
    counted = Counter(programs)
    print(counted)
    assert len(programs) <= MOST_PROGRAMS, dict(counted)


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_training_adapters_take_their_arithmetic_size(own):
    """Weights, gradient and two moments, float32, each adapter at its own rank; nothing more stays alive."""
    before, clients = live_bytes(), []
    for n, rank in enumerate((1, 4, 8, 8, 16)):
        clients.append(Client(own, f"adapter-{n}", rank=rank))
        clients[-1].forward_backward(datum(30, n))
        clients[-1].step(AdamParams())
        clients[-1].forward_backward(datum(30, n))  # the gradient of the next step
    weights = [tree_bytes(own._bank[client.model_id].weights) for client in clients]
    assert weights[2] == 2 * weights[1] == 8 * weights[0]
    assert live_bytes() - before <= 1.05 * 4 * sum(weights)


def test_an_adapter_that_does_not_train_has_no_optimizer_state(own):
    client = Client(own, "idle", rank=8)
    client.forward(datum(30))
    adapter = own._bank["idle"]
    assert (adapter.gradient, adapter.moments) == (None, None)
    assert adapter.memory_bytes == tree_bytes(adapter.weights)


def test_two_hundred_adapters_come_and_go(own):
    def one(n: int) -> None:
        answer(own, CreateAdapter(f"a{n}", LoraConfig(rank=8, seed=n), ""))
        answer(own, UnloadAdapter(f"a{n}"))

    one(0)
    before = live_bytes()
    for n in range(1, 201):
        one(n)
    assert live_bytes() == before
