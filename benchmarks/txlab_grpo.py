"""GRPO by a lab: the real SDK over a real port, as a user's program does it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tinker
from tinker import types

import txlab
from benchmarks.grpo import Grpo, Phases, advantages, reward
from benchmarks.measure import numpy_matmul_gflops, xla_matmul_gflops
from txlab.config import EngineSettings, ModelSettings, StoreSettings


class TxlabGrpo:
    """A lab of its own, a client that trains and one that samples from its newest weights."""

    def __init__(self, model: str, dtype: str, compile_cache: Path | None = None, work: Grpo | None = None):
        self._work = work or Grpo()
        self._folder = tempfile.TemporaryDirectory()
        settings = txlab.Settings(
            model=ModelSettings(name=model, dtype=dtype),
            # Nothing is compiled ahead: that would go on while the peer computes.
            engine=EngineSettings(compile_cache=compile_cache, warm_up=False),
            store=StoreSettings(Path(self._folder.name)),
        )
        self._lab = txlab.serve(settings=settings)
        self._engine = self._lab._serving().engine
        self._service = tinker.ServiceClient()
        self._training = self._service.create_lora_training_client(self._lab.model, rank=self._work.rank).result()
        self._sampler = self._training.save_weights_and_get_sampling_client().result()
        self._rounds = 0

    def warm_up(self) -> None:
        """Compile all programs: a whole round, since its shapes are the engine's choice."""
        self.round()

    def round(self) -> dict[str, Any]:
        """``seconds``, those of each of its ``phases`` and those in which the engine was ``busy``; mean ``reward``."""
        busy, phases = self._engine.busy_seconds, Phases()
        prompts = self._work.texts(self._engine.limits.vocab_size, self._rounds)
        groups = self._sample(prompts)
        phases.end("sample")
        rewards = reward(np.array([[sequence.tokens for sequence in group] for group in groups]))  # (G, S)
        data = [
            datum(prompt, sequence, advantage)
            for prompt, group, own in zip(prompts, groups, advantages(rewards), strict=True)
            for sequence, advantage in zip(group, own, strict=True)
        ]
        phases.end("reward")
        passed = self._training.forward_backward(data, "importance_sampling")
        stepped = self._training.optim_step(types.AdamParams(learning_rate=self._work.learning_rate))
        passed.result(), stepped.result()
        phases.end("train")
        self._sampler = self._training.save_weights_and_get_sampling_client().result()
        phases.end("snapshot")
        self._rounds += 1
        busy = self._engine.busy_seconds - busy
        return {"seconds": phases.total, "phases": phases.seconds, "busy": busy, "reward": float(rewards.mean())}

    def rates(self) -> dict[str, float]:
        """GFLOP/s of matrix products at this moment."""
        return {"numpy": numpy_matmul_gflops(), "xla": xla_matmul_gflops()}

    def close(self) -> None:
        """Stop the lab."""
        self._service.close("success").result()
        self._lab.stop()
        self._folder.cleanup()

    def _sample(self, prompts: np.ndarray) -> list[list[types.SampledSequence]]:
        """The group of each prompt (P,)."""
        params = types.SamplingParams(max_tokens=self._work.new_tokens, temperature=1.0, stop=[])
        asked = [
            self._sampler.sample(types.ModelInput.from_ints(prompt.tolist()), self._work.samples, params)
            for prompt in prompts
        ]
        return [list(future.result().sequences) for future in asked]


def datum(prompt: np.ndarray, sequence: types.SampledSequence, advantage: float) -> types.Datum:
    """A sample (T,) after its prompt (P,), as importance_sampling wants it; positions of the prompt count nothing."""
    text = [*prompt.tolist(), *sequence.tokens]
    given = [0.0] * (len(prompt) - 1)
    return types.Datum(
        types.ModelInput.from_ints(text[:-1]),
        loss_fn_inputs={
            "target_tokens": np.array(text[1:]),
            "logprobs": np.array([*given, *sequence.logprobs], np.float32),
            "advantages": np.array([*given, *[advantage] * len(sequence.tokens)], np.float32),
        },
    )
