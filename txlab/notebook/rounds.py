"""Rounds of a playground: a prompt, the form that it came with, and answers that grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from txlab.notebook.drafts import Ask, Draft
from txlab.notebook.form import Form
from txlab.notebook.views.answers import Answer, Text
from txlab.notebook.views.frame import Decode
from txlab.notebook.views.playground_html import Turn

CANCELLED = "stopped"


@dataclass(slots=True, eq=False)
class Round:
    """One prompt to several sources."""

    number: int
    form: Form
    ask: Ask
    drafts: tuple[Draft, ...]
    colors: tuple[str, ...]  # of the sources, as CSS classes
    told: dict[bool, Turn] = field(default_factory=dict)  # once it has ended: with logprobs, and without

    @property
    def live(self) -> bool:
        """Whether somebody still answers."""
        return not all(draft.ended or draft.cancelled for draft in self.drafts)

    def turn(self, decode: Decode, logprobs: bool) -> Turn:
        """The round as it is now, with tokens and their logprobs where these are asked for."""
        if logprobs in self.told:
            return self.told[logprobs]
        live = self.live  # first of all: what comes meanwhile is there the next time
        answers = tuple(
            _answer(draft, color, decode, logprobs) for draft, color in zip(self.drafts, self.colors, strict=True)
        )
        turn = Turn(self.number, self.ask.prompt, _settings(self.ask), answers, live)
        if all(draft.ended for draft in self.drafts):
            self.told[logprobs] = turn
        return turn


def _answer(draft: Draft, color: str, decode: Decode, logprobs: bool) -> Answer:
    problem = "" if draft.cancelled else draft.problem
    ends = draft.stop_reasons
    texts = tuple(
        _text(draft, list(drawn), end or CANCELLED * draft.cancelled, decode, logprobs)
        for drawn, end in zip(draft.drawn, ends, strict=True)
    )
    source = draft.source
    return Answer(source.name, texts, color, problem, base=source.model_id is None)


def _text(draft: Draft, drawn: Sequence[tuple[int, float]], end: str, decode: Decode, logprobs: bool) -> Text:
    said = decode([token for token, _ in drawn], draft.prompt, growing=not end)
    pieces = tuple(zip(said, (score for _, score in drawn), strict=True)) if logprobs else ()
    return Text("".join(said), len(drawn), end, pieces)


def _settings(ask: Ask) -> str:
    """How it was sampled, in one line."""
    params = ask.params
    parts = ["chat turn"] * ask.chat + [f"temperature {params.temperature:g}"]
    parts += [f"top-k {params.top_k}"] * (params.top_k != -1) + [f"top-p {params.top_p:g}"] * (params.top_p < 1)
    parts += [f"seed {params.seed}"] * (params.seed is not None)
    parts += [f"stop at {', '.join(map(repr, params.stop))}"] if params.stop else []
    return " · ".join(parts)
