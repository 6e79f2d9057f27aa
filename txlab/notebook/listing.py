"""Sequences of things that a cell shows as a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Generic, TypeVar, overload

from txlab.notebook.errors import TxlabError
from txlab.notebook.views.tables import (
    Column,
    face_html,
    facts_html,
    facts_text,
    line_html,
    plural,
    table_html,
    table_text,
)

ROWS = 50  # of a table; more are counted


class Listed(ABC):
    """One thing of a listing. Those that are dataclasses make a ``pandas.DataFrame`` of it."""

    KIND: ClassVar[str]
    COLUMNS: ClassVar[tuple[Column, ...]]

    created: datetime

    @abstractmethod
    def cells(self) -> tuple[str, ...]:
        """What the columns say of it."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """What it is found by; the last is nobody else's."""

    def __repr__(self) -> str:
        return facts_text(self._facts())

    def _repr_html_(self) -> str:
        return face_html(self.KIND, facts_html(self._facts()))

    def _facts(self) -> list[tuple[str, str]]:
        return [(column.name, cell) for column, cell in zip(self.COLUMNS, self.cells(), strict=True)]


T = TypeVar("T", bound=Listed)


class Listing(Sequence[T], Generic[T]):
    """Things of one kind, by their place or by what they are called: ``runs[0]``, ``runs["pirate"]``."""

    def __init__(self, kind: type[T], items: Sequence[T]):
        self._kind = kind
        self._items = tuple(items)

    @overload
    def __getitem__(self, index: int | str) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Listing[T]: ...

    def __getitem__(self, index: int | str | slice) -> T | Listing[T]:
        if isinstance(index, slice):
            return Listing(self._kind, self._items[index])
        return self.find(index) if isinstance(index, str) else self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def find(self, name: str) -> T:
        """The one of that id, else the newest of that name. Raises TxlabError, which says what there is."""
        found = [item for item in self._items if name == item.names()[-1]]
        found = found or [item for item in self._items if name in item.names()]
        if not found:
            there = ", ".join(repr(item.names()[0]) for item in self._items[:ROWS]) or "none"
            raise TxlabError(f"There is no {self._kind.KIND} {name!r}. There are: {there}.")
        return max(found, key=lambda item: item.created)

    def __repr__(self) -> str:
        if not self._items:
            return f"no {self._kind.KIND}s"
        return "\n".join([table_text(self._kind.COLUMNS, self._rows()), *self._more()])

    def _repr_html_(self) -> str:
        label = f"{self._kind.KIND}s"
        if not self._items:
            return face_html(label, line_html(f"no {label}"))
        table = table_html(self._kind.COLUMNS, self._rows(), plural(len(self), self._kind.KIND))
        return face_html(label, table, *map(line_html, self._more()))

    def _rows(self) -> list[tuple[str, ...]]:
        return [item.cells() for item in self._items[:ROWS]]

    def _more(self) -> list[str]:
        return [f"… and {len(self) - ROWS:,} more"] if len(self) > ROWS else []
