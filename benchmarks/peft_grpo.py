"""GRPO by transformers.generate and PEFT on torch (the ``parity`` extra), in one process, without a server."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from benchmarks.generate_peer import GeneratePeer
from benchmarks.grpo import Grpo, Phases, advantages, reward
from benchmarks.peft_trainer import BATCH_TOKENS, load_model
from txlab.lora.state import ALPHA
from txlab.models.config import ATTENTION, MLP, UNEMBED


class PeftGrpo:
    """One model that samples all groups as one batch, and trains on passes of at most BATCH_TOKENS."""

    def __init__(self, model: str, dtype: str, work: Grpo | None = None):
        torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(0)
        self._work = work or Grpo()
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=self._work.rank,
            lora_alpha=int(ALPHA),
            target_modules=[*ATTENTION, *MLP, *UNEMBED],
        )
        self._model = get_peft_model(load_model(model, dtype), lora)
        self._sampler = GeneratePeer(self._model)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=self._work.learning_rate, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0, fused=True
        )
        self._rounds = 0

    def warm_up(self) -> None:
        """A round of one group: torch compiles nothing that more would prepare."""
        self._round(self._work.texts(self._sampler.vocab_size, 0)[:1])

    def round(self) -> dict[str, Any]:
        """``seconds``, and those of each of its ``phases``; mean ``reward``."""
        self._rounds += 1
        return self._round(self._work.texts(self._sampler.vocab_size, self._rounds))

    def _round(self, prompts: np.ndarray) -> dict[str, Any]:
        phases = Phases()
        prompts = prompts.repeat(self._work.samples, axis=0)  # (B, P)
        drawn = self._sampler.generate(prompts, self._work.new_tokens, temperature=1.0)  # (B, T)
        phases.end("sample")
        rewards = reward(drawn).reshape(-1, self._work.samples)
        weights = advantages(rewards).reshape(-1)
        phases.end("reward")
        self._train(np.concatenate([prompts, drawn], axis=1), weights)
        phases.end("train")
        return {"seconds": phases.total, "phases": phases.seconds, "reward": float(rewards.mean())}

    def _train(self, texts: np.ndarray, weights: np.ndarray) -> None:
        """A policy gradient with weights (B,) on the ends of texts (B, P + T), and a step."""
        rows = BATCH_TOKENS // texts.shape[1]
        for start in range(0, len(texts), rows):
            batch = torch.from_numpy(texts[start : start + rows])
            logprobs = self._logprobs(batch)
            ratio = torch.exp(logprobs - logprobs.detach())  # trained on what it sampled itself: no need to keep those
            loss = -(ratio.sum(-1) * torch.from_numpy(weights[start : start + rows]).to(ratio)).sum()
            loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _logprobs(self, texts: torch.Tensor) -> torch.Tensor:
        """Logprobs (B, T) of the drawn tokens of texts (B, P + T). The head computes nothing for the prompts."""
        count = self._work.new_tokens
        logits = self._model(input_ids=texts[:, :-1], use_cache=False, logits_to_keep=count).logits  # (B, T, V)
        targets = texts[:, -count:]
        return -cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)
