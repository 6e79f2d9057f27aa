"""Samples asked for in a cell: straight from the engine, by an adapter's name, without a client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, overload

from txlab.engine.requests import SampledSequence, SamplingParams
from txlab.notebook.drafts import BASE, Ask, Draft, Source, find_sources, to_request, wait_for
from txlab.notebook.served import LabPart

if TYPE_CHECKING:
    from txlab.engine.engine import Engine

_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere"


@dataclass(frozen=True, slots=True, eq=False)
class Samples(Sequence[str]):
    """Continuations of one prompt, a sequence of texts; ``drawn`` has their tokens, logprobs and stop reasons."""

    adapter: str  # its name, or "base"
    prompt: str
    texts: tuple[str, ...]
    drawn: tuple[SampledSequence, ...]

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.texts[index]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return "\n".join(f"{note}\n{text}" for note, text in zip(self._notes(), self.texts, strict=True))

    def _repr_html_(self) -> str:
        """The prompt dimmed before each continuation."""
        blocks = (
            f'<div style="margin:0 0 .8em"><small style="opacity:.7">{escape(note)}</small><div style="{_TEXT}">'
            f'<span style="opacity:.6">{escape(self.prompt)}</span><b>{escape(text)}</b></div></div>'
            for note, text in zip(self._notes(), self.texts, strict=True)
        )
        return f'<div role="group" aria-label="samples of {escape(self.adapter)}">{"".join(blocks)}</div>'

    def _notes(self) -> list[str]:
        return [f"{self.adapter} · {len(one.tokens)} tokens · {one.stop_reason}" for one in self.drawn]


class Sampling(LabPart):
    """Texts straight from the engine."""

    def sample(
        self,
        prompt: str,
        adapter: str | None = None,
        *,
        samples: int = 1,
        chat: bool = False,
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = -1,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str | int] | None = None,
    ) -> Samples:
        """Continue a text with an adapter as it is now, while it trains or not; without one, with the base.

        It waits until all is drawn. Interrupting the cell ends the samples too.

        Args:
            prompt: a text; with ``chat`` the user's turn of a conversation.
            adapter: its name or run id; None or "base" is the base. Of a name that several have it is the newest,
                and a warning says so.
            samples: how many continuations.
            chat: lay the prompt out with the model's chat template.
            max_tokens: tokens of each, at most.
            temperature: 0 is greedy.
            top_k: draw from so many of the likeliest tokens only; -1: all.
            top_p: draw from the likeliest tokens that have this probability together.
            seed: the same one gives the same texts.
            stop: texts or token ids that end a sample; None is the model's own end.

        Raises:
            TxlabError: the lab is stopped, there is no such adapter, or an argument is out of its range.
        """
        params = SamplingParams(max_tokens, temperature, top_k, top_p, seed, None if stop is None else tuple(stop))
        ask = Ask(prompt, params, samples, chat)
        (found,) = draw(self._serving().engine, ask, find_sources(self._bus.view().adapters, [adapter or BASE]))
        return found


def draw(engine: Engine, ask: Ask, sources: Sequence[Source]) -> tuple[Samples, ...]:
    """Ask all at once, each as it is at this moment, and wait; an interrupt frees their rows.

    Raises TxlabError where the engine refuses the request, or one of them fails.
    """
    request = to_request(engine, ask)
    drafts = [Draft(engine, request, source) for source in sources]
    results = wait_for(engine, drafts)
    tokenizer = engine.base.tokenizer
    return tuple(
        Samples(draft.source.name, ask.prompt, draft.texts(tokenizer), result.sequences)
        for draft, result in zip(drafts, results, strict=True)
    )
