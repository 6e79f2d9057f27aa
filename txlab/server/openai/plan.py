"""What a request comes to: samples for the engine, and how their texts are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from txlab.engine.requests import Sample, SamplingParams
from txlab.server.openai.prompts import Prompt
from txlab.server.openai.wire import Drawing

if TYPE_CHECKING:
    from txlab.models.base import BaseModel


@dataclass(frozen=True, slots=True)
class Telling:
    """What is said besides the drawn text."""

    logprobs: bool = False
    top: int = 0  # likeliest tokens in the place of each
    echo: bool = False  # the prompt first
    echo_only: bool = False  # nothing but the prompt: what is drawn is dropped


@dataclass(frozen=True, slots=True)
class Plan:
    """Texts to draw: ``n`` of each prompt, numbered prompt by prompt."""

    prompts: tuple[Prompt, ...]
    samples: tuple[Sample, ...]  # one per prompt, of no weights yet
    n: int
    stops: tuple[str, ...]
    telling: Telling

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt.tokens) for prompt in self.prompts)

    @property
    def at_once(self) -> bool:
        """Whether texts can be told while they are drawn: likeliest tokens and scored prompts come at the end."""
        return not self.telling.top and not self.telling.echo


def make_plan(body: Drawing, prompts: list[Prompt], telling: Telling, max_tokens: int | None, base: BaseModel) -> Plan:
    """Plan ``body``; where ``max_tokens`` is None a text may fill the model's context."""
    scores = telling.echo and telling.logprobs

    def sample(prompt: Prompt) -> Sample:
        room = max(1, base.config.max_context - len(prompt.tokens))
        params = SamplingParams(
            max_tokens=1 if telling.echo_only else room if max_tokens is None else max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=-1 if body.top_k is None else body.top_k,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=(*body.stops, *base.eos_ids),
        )
        return Sample(
            snapshot_id=None,
            prompt=prompt.tokens,
            num_samples=n,
            params=params,
            prompt_logprobs=scores,
            topk_prompt_logprobs=telling.top if scores else 0,
            topk_sample_logprobs=telling.top,
        )

    n = 1 if body.n is None else body.n
    return Plan(tuple(prompts), tuple(map(sample, prompts)), n, body.stops, telling)
