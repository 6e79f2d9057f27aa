"""What ``benchmarks/rl.py`` measures: rounds of GRPO, whoever computes them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Grpo:
    """Samples in groups, each rewarded relative to its own group. Temperature 1; nothing ends a sample early."""

    prompts: int = 16
    samples: int = 8  # of each prompt
    prompt_tokens: int = 48
    new_tokens: int = 32
    rank: int = 32
    learning_rate: float = 1e-4

    @property
    def sampled(self) -> int:
        """Tokens drawn in a round."""
        return self.prompts * self.samples * self.new_tokens

    @property
    def trained(self) -> int:
        """Tokens of a round's training pass."""
        return self.prompts * self.samples * (self.prompt_tokens + self.new_tokens - 1)

    def texts(self, vocab_size: int, number: int) -> np.ndarray:
        """Prompts of one round, random, int64 (prompts, prompt_tokens): the same for everybody, new in each round."""
        return np.random.default_rng(number).integers(vocab_size, size=(self.prompts, self.prompt_tokens))


def reward(tokens: np.ndarray) -> np.ndarray:
    """Share of even tokens (...,) in each sample (..., T)."""
    return (tokens % 2 == 0).mean(-1)


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Rewards (G, S) less the mean of their group, over its standard deviation; 0 where that is 0."""
    centred = rewards - rewards.mean(-1, keepdims=True)
    spread = np.broadcast_to(rewards.std(-1, keepdims=True), centred.shape)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


class Phases:
    """Seconds of phases that follow one another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        """A phase has ended; the next one begins."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds of all."""
        return sum(self.seconds.values())
