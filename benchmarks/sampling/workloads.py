"""What ``benchmarks/sample.py`` measures: requests that are drawn together, and goals of their speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

RANK = 8


@dataclass(frozen=True, slots=True)
class Draw:
    """Requests that are there at once: random prompts of one length, greedy, as many tokens as allowed."""

    requests: int
    prompt_tokens: int
    max_tokens: int
    samples: int = 1  # of each prompt
    adapters: bool = False  # each request samples with one of its own, else with the base
    seed: int = 0  # of the prompts

    @property
    def prefix_tokens(self) -> int:
        """Of all prompts."""
        return self.requests * self.prompt_tokens

    @property
    def new_tokens(self) -> int:
        """Of all samples."""
        return self.requests * self.samples * self.max_tokens

    def prompts(self, vocab_size: int) -> np.ndarray:
        """Token ids, int64 (requests, prompt_tokens), other ones for each seed."""
        return np.random.default_rng(self.seed).integers(vocab_size, size=(self.requests, self.prompt_tokens))


@dataclass(frozen=True, slots=True)
class Span:
    """What is timed: the seconds of ``whole``, less those of ``before``, and the tokens that they are for."""

    whole: Draw
    tokens: int
    before: Draw | None = None

    @property
    def draws(self) -> tuple[Draw, ...]:
        """What has to be drawn."""
        return (self.whole,) if self.before is None else (self.whole, self.before)


@dataclass(frozen=True, slots=True)
class Row:
    """A span and what it is compared with: the sum of others, or, without any, what transformers needs for the same."""

    name: str
    span: Span
    beside: Mapping[str, Span] = field(default_factory=dict)
    goal: float | None = None  # least ratio of tokens/s
    cost_goal: float | None = None  # largest ratio of seconds

    @property
    def spans(self) -> tuple[Span, ...]:
        """All that the lab does for it."""
        return self.span, *self.beside.values()

    @property
    def peer(self) -> bool:
        """Whether it is transformers that it is compared with."""
        return not self.beside


def decoding(draw: Draw) -> Span:
    """All after the first tokens: what is the same with ``max_tokens=1`` is taken off."""
    first = replace(draw, max_tokens=1)
    return Span(draw, draw.new_tokens - first.new_tokens, first)


def prefilling(draw: Draw) -> Span:
    """All up to the first tokens."""
    return Span(replace(draw, max_tokens=1), draw.prefix_tokens)


def rows() -> tuple[Row, ...]:
    """All rows but the starts and the trace."""
    one, eight, many = (Draw(n, 64, 64) for n in (1, 8, 32))
    shared = Draw(1, 256, 32, samples=16)
    return (
        Row("decode-1", decoding(one), goal=3.0),
        Row("decode-8", decoding(eight), goal=2.7),
        Row("decode-32", decoding(many), goal=1.7),
        Row("prefill-32", prefilling(Draw(32, 256, 1)), goal=480 / 523),
        Row(
            "shared-16",
            Span(shared, shared.new_tokens),
            beside={
                "prefill": prefilling(replace(shared, samples=1)),
                "decoding": decoding(replace(shared, requests=16, samples=1)),  # of texts as long, nothing shared
            },
            cost_goal=1.3,
        ),
        Row("adapters-8", decoding(replace(eight, adapters=True)), beside={"base": decoding(eight)}, goal=0.85),
        Row("adapters-32", decoding(replace(many, adapters=True)), beside={"base": decoding(many)}, goal=0.80),
    )
