"""What a request comes to: samples for the engine, and how their texts are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from txlab.engine.requests import Sample, SamplingParams
from txlab.server.errors import ApiError
from txlab.server.openai.prompts import Prompt
from txlab.server.openai.wire import CompletionRequest, Drawing

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
    stop_ids: frozenset[int]  # tokens that end a text, and are no part of it
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
    scores, context = telling.echo and telling.logprobs, base.config.max_context
    most = 1 if telling.echo_only else max_tokens
    field = "prompt" if isinstance(body, CompletionRequest) else "messages"
    for prompt in prompts:
        _check_context(len(prompt.tokens), most, context, field)

    def sample(prompt: Prompt) -> Sample:
        params = SamplingParams(
            max_tokens=context - len(prompt.tokens) if most is None else most,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=body.top_k or -1,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=(*body.stops, *stop_ids),
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
    stop_ids = frozenset((*(body.stop_token_ids or ()), *(() if body.ignore_eos else base.eos_ids)))
    return Plan(tuple(prompts), tuple(map(sample, prompts)), n, body.stops, stop_ids, telling)


def _check_context(prompt: int, most: int | None, context: int, what: str) -> None:
    """Refuse what is longer than the model's context, in the words that clients of OpenAI's API look for.

    Some look for the code in the message itself, to which the official client's exceptions reduce an answer.
    """
    if prompt + (most or 1) <= context:
        return
    if most is None:
        told, cure = f"your {what} resulted in {prompt} tokens", what
    else:
        told = f"you requested {prompt + most} tokens ({prompt} in the {what}, {most} in the completion)"
        cure = f"{what} or completion"
    message = f"This model's maximum context length is {context} tokens. However, {told}."
    code = "context_length_exceeded"
    raise ApiError(400, f"{message} Please reduce the length of the {cure} ({code}).", what, code)
