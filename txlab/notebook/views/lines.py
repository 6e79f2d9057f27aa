"""Breaking text into lines of monospaced cells."""

from __future__ import annotations

import unicodedata


def wrap(text: str, width: int) -> list[tuple[int, int]]:
    """(start, end) of each line of at most ``width`` monospaced cells, broken at spaces where there are any."""
    lines, start = [], 0
    while start < len(text):
        end = start + _fit(text[start : start + width], width)
        if end < len(text) and text[end] != " ":
            space = text.rfind(" ", start, end)
            end = space if space > start else end
        lines.append((start, end))
        start = end + (text[end : end + 1] == " ")
    return lines


def _fit(text: str, width: int) -> int:
    """How many characters of ``text`` fill ``width`` cells; East Asian wide ones take two."""
    used = 0
    for count, char in enumerate(text):
        used += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > width:
            return max(count, 1)
    return len(text)
