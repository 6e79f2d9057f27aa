"""The whole way: the SDK, the server, the real engine on a tiny model, and a disk that outlives both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tinker import types

from tests.server.conftest import Running, serve
from txlab.config import EngineSettings, ModelSettings, ServerSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.models.base import load_base

TOKENS = [11, 45, 97, 23, 150, 61, 88, 12, 71]


@contextmanager
def lab(model: Path, root: Path) -> Iterator[Running]:
    settings = EngineSettings(train_tokens=128, sample_rows=4, decode_steps=2, compile_cache=None)
    engine = Engine(load_base(ModelSettings(name=str(model))), settings, EventBus())
    engine.start()
    with serve(engine, root, ServerSettings()) as running:
        yield running
    engine.stop()


def datum() -> types.Datum:
    inputs = {"target_tokens": np.array(TOKENS[1:]), "weights": np.ones(len(TOKENS) - 1, np.float32)}
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=inputs)


def train(client, steps):
    futures = []
    for _ in range(steps):
        futures.append(client.forward_backward([datum()], "cross_entropy"))
        client.optim_step(types.AdamParams(learning_rate=3e-3))
    return [future.result(timeout=120).metrics["loss:sum"] for future in futures]


def logprobs(client):
    return client.forward([datum()], "cross_entropy").result(timeout=120).loss_fn_outputs[0]["logprobs"].to_numpy()


def test_learn_sample_save_and_go_on_after_a_restart(tiny_llama, tmp_path):
    with lab(tiny_llama, tmp_path) as running:
        client = running.client().create_lora_training_client(base_model=str(tiny_llama), rank=4, seed=1).result(60)
        losses = train(client, 3)
        assert losses[2] < losses[0]
        path = client.save_state("ck").result(timeout=60).path
        sampler_path = client.save_weights_for_sampler("ck").result(timeout=60).path
        sampler = client.save_weights_and_get_sampling_client().result(timeout=60)
        trained = logprobs(client)
        scored = sampler.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result(timeout=120)
        assert scored[1:] == pytest.approx(trained, abs=1e-4)
        expected = train(client, 2)

    with lab(tiny_llama, tmp_path) as running:
        service = running.client()
        resumed = service.create_training_client_from_state_with_optimizer(path).result(timeout=60)
        np.testing.assert_allclose(logprobs(resumed), trained, atol=1e-5)
        assert train(resumed, 2) == pytest.approx(expected, rel=1e-5)
        sampler = service.create_sampling_client(model_path=sampler_path).result(timeout=60)
        scored = sampler.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result(timeout=120)
        assert scored[1:] == pytest.approx(trained, abs=1e-4)
