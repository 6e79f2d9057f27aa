"""What the magics are for, read from the magics themselves: their first line, an example, and their options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from IPython.core.magic import Magics
from IPython.core.magic_arguments import kwds

from txlab.notebook.errors import TxlabError
from txlab.notebook.texts import Text

_EXAMPLE = "Example: "
_CELL = "text-align:left;vertical-align:top"


def example(line: str) -> kwds:
    """Decorate a magic with a line that shows it at work; its help ends with it."""
    return kwds(epilog=_EXAMPLE + line)


@dataclass(frozen=True, slots=True)
class Entry:
    """One magic."""

    name: str  # with its % or %%
    summary: str
    example: str
    options: str  # its whole help


@dataclass(frozen=True, slots=True)
class Manual:
    """Every magic of a class, in a table."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, magics: type[Magics]) -> Manual:
        """The manual of a class of magics; each has ``magic_arguments`` and an ``example``."""
        kinds = (("line", "%"), ("cell", "%%"))
        return cls(
            tuple(
                _entry(mark + name, getattr(magics, method))
                for kind, mark in kinds
                for name, method in magics.magics[kind].items()
            )
        )

    def page(self, name: str) -> Text:
        """The help of one magic, named with or without its sign. Raises TxlabError where there is none."""
        for entry in self.entries:
            if entry.name.strip("%") == name.strip("%"):
                return Text(entry.options)
        known = ", ".join(entry.name for entry in self.entries)
        raise TxlabError(f"There is no magic {name!r}. There are {known}.")

    def __repr__(self) -> str:
        width = max(len(entry.name) for entry in self.entries)
        indent = " " * (width + 2)
        rows = (f"{entry.name:{width}}  {entry.summary}\n{indent}{entry.example}" for entry in self.entries)
        return "\n".join([*rows, f"{'%name?':{width}}  The options of a magic."])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col" style="{_CELL}">{title}</th>' for title in ("Magic", "", "Example"))
        rows = "".join(
            f'<tr><th scope="row" style="{_CELL}"><code>{escape(entry.name)}</code></th>'
            f'<td style="{_CELL}">{escape(entry.summary)}</td>'
            f'<td style="{_CELL}"><code>{escape(entry.example)}</code></td></tr>'
            for entry in self.entries
        )
        note = "<code>%name?</code> shows the options of a magic; Tab completes them."
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><small>{note}</small>"


def _entry(name: str, magic: Callable[..., Any]) -> Entry:
    parser = magic.parser  # type: ignore[attr-defined]  # magic_arguments puts it there
    return Entry(
        name,
        summary=(parser.description or "").strip().partition("\n")[0],
        example=(parser.epilog or "").removeprefix(_EXAMPLE),
        options=parser.format_help().removeprefix("::").strip(),
    )
