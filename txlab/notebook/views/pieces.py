"""Texts by token: which token wrote which part, and how likely it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

LEVELS = (0.9, 0.5, 0.2, 0.05)  # probabilities that part the shades of tokens, from likely to surprising
LEGEND = (  # HTML: what each shade means
    '<span class="legend">'
    + "".join(
        f'<span class="lp{level}">{label}</span>'
        for level, label in enumerate(["likely", *(f"&lt; {border:.0%}" for border in LEVELS)])
    )
    + "</span>"
)


def split_text(tokens: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]) -> list[str]:
    """``text``, which is ``decode(tokens)``, by token: as many parts as tokens, which joined are ``text`` again.

    A character of several tokens belongs to the last of them, and so does whatever cannot be told apart.
    """
    alone = {token: decode([token]) for token in set(tokens)}
    parts, done, waiting = [], 0, 0
    for i, token in enumerate(tokens):
        part = alone[token] if waiting == i else decode(tokens[waiting : i + 1])
        part = _found(part, text, done)
        if part:
            done, waiting = done + len(part), i + 1
        parts.append(part)
    if parts:
        parts[-1] += text[done:]
    return parts


def _found(part: str, text: str, at: int) -> str:
    """``part`` if ``text`` goes on with it; some tokenizers leave out a space before a token that stands alone."""
    return next((way for way in (part, " " + part) if part and text.startswith(way, at)), "")


def token_html(text: str, logprob: float) -> str:
    """A sampled token, shaded by how unlikely it was: class lp0 (expected) to lp4."""
    probability = math.exp(min(logprob, 0.0))
    title = f"{text!r} · probability {probability:.1%} · logprob {logprob:.2f}"
    level = sum(probability < border for border in LEVELS)
    return f'<span class="lp{level}" title="{escape(title)}">{escape(text)}</span>'
