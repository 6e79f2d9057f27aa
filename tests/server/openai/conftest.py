"""The real engine on a tiny model behind the server, an adapter that was trained on it, and the official clients."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openai
import pytest
import tinker
from tinker import types

from tests.models.tiny import make_tiny
from tests.server.conftest import Running, serve
from txlab.config import EngineSettings, ModelSettings, ServerSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.requests import Sample, SampledSequence, SamplingParams
from txlab.models.base import load_base

LESSON = "The quick brown fox jumps over the lazy dog."


@dataclass
class OpenAILab:
    """A server with an adapter called ``pig`` that was trained, and a checkpoint of it."""

    running: Running
    base: str
    training: tinker.TrainingClient | None = None
    checkpoint: str = ""

    @property
    def tokenizer(self):
        return self.running.engine.base.tokenizer

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.running.url}/v1", api_key=self.running.key, max_retries=0, timeout=300)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.running.url}/v1", api_key=self.running.key, max_retries=0)

    def train(self, client: tinker.TrainingClient, steps: int = 1) -> None:
        tokens = self.tokenizer.encode(LESSON)
        inputs = {"target_tokens": np.array(tokens[1:]), "weights": np.ones(len(tokens) - 1, np.float32)}
        datum = types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
        for _ in range(steps):
            client.forward_backward([datum], "cross_entropy")
            step = client.optim_step(types.AdamParams(learning_rate=1e-2))
        step.result(timeout=120)

    def sample(self, prompt: str, **params) -> SampledSequence:
        """What the engine draws from the base model, asked without any HTTP."""
        params = SamplingParams(**({"max_tokens": 12, "temperature": 0.0} | params))
        return self._ask(self.tokenizer.encode(prompt), params)

    def draw(self, prompt: list[int], max_tokens: int, seed: int, **params) -> list[int]:
        """The tokens that the engine draws after those of ``prompt``."""
        return self._ask(prompt, SamplingParams(max_tokens, seed=seed, **params)).tokens.tolist()

    def _ask(self, prompt: list[int], params: SamplingParams) -> SampledSequence:
        drawn: Future = Future()
        tokens = np.array(prompt, np.int32)
        self.running.engine.submit(Sample(None, tokens, 1, params, topk_sample_logprobs=2), drawn.set_result)
        return drawn.result(300).sequences[0]


@contextmanager
def open_engine(folder: Path) -> Iterator[Engine]:
    """An engine that runs the model of a folder."""
    settings = EngineSettings(train_tokens=128, sample_rows=8, decode_steps=2, compile_cache=None)
    engine = Engine(load_base(ModelSettings(name=str(folder))), settings, EventBus())
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAILab]:
    folder = make_tiny(tmp_path_factory.mktemp("models") / "tiny-untied", tie_word_embeddings=False)
    with (
        open_engine(folder) as engine,
        serve(engine, tmp_path_factory.mktemp("store"), ServerSettings()) as running,
    ):
        creating = running.client().create_lora_training_client(str(folder), rank=8, user_metadata={"name": "pig"})
        training = creating.result(timeout=300)
        lab = OpenAILab(running, str(folder), training)
        lab.train(training, 25)
        lab.checkpoint = training.save_weights_for_sampler("trained").result(timeout=60).path
        yield lab
