"""Texts that are the value of a cell."""

from __future__ import annotations


class Text(str):
    """A text that a cell shows as it reads, line by line, where a plain string would be quoted."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
