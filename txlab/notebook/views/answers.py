"""Answers of several sources side by side, as HTML and text. Pure functions of texts that are already decoded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from itertools import accumulate, pairwise

from txlab.notebook.views.pieces import token_html
from txlab.notebook.views.text import printable

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Text:
    """One continuation. ``pieces`` are the text by token with each one's logprob, where these are asked for."""

    text: str
    tokens: int
    end: str = ""  # why it ended; empty while it grows
    pieces: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one source says, or why it does not. ``color`` is the CSS class of its curve on the board."""

    name: str
    texts: tuple[Text, ...]
    color: str = ""
    problem: str = ""
    base: bool = False  # what the others are compared with


def answers_html(answers: Sequence[Answer], diff: bool = False) -> str:
    """A column per answer; ``diff`` marks the words in which it differs from the base's answer."""
    base = next((answer.texts for answer in answers if answer.base), ()) if diff else ()
    columns = (_column(answer, base) for answer in answers)
    return f'<div class="answers">{"".join(columns)}</div>'


def answers_text(answers: Sequence[Answer]) -> str:
    """The answers one below the other."""
    return "\n".join(line for answer in answers for line in _lines(answer))


def _lines(answer: Answer) -> Iterator[str]:
    if answer.problem:
        yield f"{answer.name} · {answer.problem}"
    for text in answer.texts if not answer.problem else ():
        yield f"{answer.name} · {_note(text)}\n{printable(text.text)}"


def _column(answer: Answer, base: Sequence[Text]) -> str:
    name = escape(answer.name)
    if answer.problem:
        body = f'<p class="problem">{escape(answer.problem)}</p>'
    else:
        body = "".join(_text(text, base[i] if i < len(base) else None) for i, text in enumerate(answer.texts))
    head = f'<h4><i class="dot"></i>{name}</h4>'
    return f'<section class="{answer.color}" aria-label="Answer of {name}">{head}{body}</section>'


def _text(text: Text, base: Text | None) -> str:
    compared = base if base is not None and base.end and text.end else None  # marks in texts that grow would flicker
    caret = "" if text.end else " caret"
    return f'<div class="written{caret}">{_spans(text, compared)}</div><small>{escape(_note(text))}</small>'


def _note(text: Text) -> str:
    tokens = f"{text.tokens} token{'' if text.tokens == 1 else 's'}"
    return f"{tokens} · {text.end or 'sampling'}"


# ------------------------------------------------------------------------------------- spans


def _spans(text: Text, base: Text | None) -> str:
    """The text by token and by what is new against the base's."""
    shown = printable(text.text)
    changed = [] if base is None else differing(shown, printable(base.text))
    tokens = [(printable(piece), logprob) for piece, logprob in text.pieces] or [(shown, math.nan)]
    ends = list(accumulate(len(piece) for piece, _ in tokens))
    borders = sorted({0, *ends, *(border for span in changed for border in span)})
    parts, token = [], 0
    for start, end in pairwise(borders):
        while ends[token] <= start:
            token += 1
        piece, logprob = shown[start:end], tokens[token][1]
        part = escape(piece) if math.isnan(logprob) else token_html(piece, logprob)
        parts.append(f"<mark>{part}</mark>" if any(a <= start < b for a, b in changed) else part)
    return "".join(parts)


def differing(text: str, base: str) -> list[tuple[int, int]]:
    """(start, end) of the stretches of ``text`` whose words ``base`` does not have in that place."""
    words, others = list(_WORD.finditer(text)), _WORD.findall(base)
    matcher = SequenceMatcher(None, others, [word.group() for word in words], autojunk=False)
    return [
        (words[first].start(), words[last - 1].end())
        for kind, _, _, first, last in matcher.get_opcodes()
        if kind in ("insert", "replace")
    ]
