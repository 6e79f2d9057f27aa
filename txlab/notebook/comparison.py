"""One prompt to several adapters and the base, answered in one mixed batch and laid out side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from txlab.notebook.drafts import BASE
from txlab.notebook.samples import Samples
from txlab.notebook.views.answers import Answer, Text, answers_html, answers_text
from txlab.notebook.views.playground_style import playground_style


@dataclass(frozen=True, slots=True, eq=False)
class Comparison(Mapping[str, Samples]):
    """What each source says to one prompt: ``comparison["pirate"]`` are its samples, ``comparison["base"]`` the base's.

    In a notebook they stand side by side, and words that the base does not say in that place are marked.
    """

    prompt: str
    answers: tuple[Samples, ...]

    def __getitem__(self, name: str) -> Samples:
        """Samples of the base ("base"), or of an adapter by its name. KeyError where it was not asked."""
        found = next((one for one in self.answers if one.adapter == name), None)
        if found is None:
            raise KeyError(f"{name!r} was not asked; asked were {', '.join(map(repr, self))}")
        return found

    def __iter__(self) -> Iterator[str]:
        return (one.adapter for one in self.answers)

    def __len__(self) -> int:
        return len(self.answers)

    def __repr__(self) -> str:
        return f"{self.prompt}\n{answers_text(self._answers())}"

    def _repr_html_(self) -> str:
        """The prompt, and a column for each who was asked."""
        return (
            f'<style>{playground_style()}</style><section class="txlab-panel" aria-label="comparison">'
            f'<p class="prompt">{escape(self.prompt)}</p>{answers_html(self._answers(), diff=True)}</section>'
        )

    def _answers(self) -> tuple[Answer, ...]:
        return tuple(Answer(one.adapter, _texts(one), base=one.adapter == BASE) for one in self.answers)


def _texts(samples: Samples) -> tuple[Text, ...]:
    drawn = zip(samples.texts, samples.drawn, strict=True)
    return tuple(Text(text, len(one.tokens), one.stop_reason) for text, one in drawn)
