"""Texts by token: which token wrote which part, and how likely it was."""

from __future__ import annotations

import math
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


def token_html(text: str, logprob: float) -> str:
    """A sampled token, shaded by how unlikely it was: class lp0 (expected) to lp4."""
    probability = math.exp(min(logprob, 0.0))
    title = f"{text!r} · probability {probability:.1%} · logprob {logprob:.2f}"
    level = sum(probability < border for border in LEVELS)
    return f'<span class="lp{level}" title="{escape(title)}">{escape(text)}</span>'
