"""What a playground's form says: texts of fields to typed arguments, with errors in the words of the form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from txlab.notebook.drafts import SamplingOptions
from txlab.notebook.errors import TxlabError
from txlab.notebook.views.playground_html import LABELS

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Form:
    """A form as it was filled in: the ``texts`` of its fields, and the keys of the chosen ``sources``."""

    texts: Mapping[str, str]
    sources: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What is to be continued."""
        return self.texts["prompt"]

    def options(self) -> SamplingOptions:
        """How it is to be continued. Raises TxlabError, which names the field."""
        return {
            "chat": self.texts["layout"] == "chat",
            "max_tokens": self.number("max_tokens", int),
            "temperature": self.number("temperature", float),
            "top_k": self.number("top_k", int) if self.texts["top_k"] else -1,
            "top_p": self.number("top_p", float),
            "seed": self.number("seed", int) if self.texts["seed"] else None,
            "stop": self._stops() or None,
        }

    def number(self, name: str, kind: type[Number]) -> Number:
        """A number that must be there. Raises TxlabError."""
        text = self.texts[name].strip()
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise TxlabError(f"{LABELS[name]} is {text!r}: expected {wanted}.") from None

    def _stops(self) -> list[str]:
        written = self.texts["stop"].split(",")
        return [text.replace("\\n", "\n").replace("\\t", "\t") for text in written if text]


def read_form(fields: Mapping[str, str | list[str]], defaults: Mapping[str, str]) -> Form:
    """The form that a page sent; what it left out is as in ``defaults``."""
    texts = {name: str(fields.get(name, default)) for name, default in defaults.items()}
    sources = fields.get("sources", [])
    return Form(texts, tuple(sources) if isinstance(sources, list) else (sources,))
