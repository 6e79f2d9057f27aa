"""Tokens one by one, shaded by what they count for: HTML and text. Pure functions of arrays and a decoder.

Shading is see-through colour on the page's own, so that it fits any theme. Text that is copied is the decoded text:
signs for spaces and line breaks are drawn by the style sheet only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

import numpy as np

from txlab.notebook.views.frame import Decode

BLUE, ORANGE = "47,129,247", "224,112,32"  # above and below zero; told apart by the colour-blind too
DIM = "opacity:.6"

TOKEN_STYLE = (
    ".txlab-tokens{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;font-size:12.5px;"
    "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
    ".txlab-tokens b{font-weight:inherit;border-radius:3px;padding:1px 0;margin-right:1px}"
    ".txlab-tokens.legend{font-family:inherit;font-size:12px}"
    ".txlab-tokens b:hover{outline:1px solid currentColor}"
    ".txlab-tokens b:empty::before{content:'\\200a'}"
    ".txlab-tokens .other{text-decoration:underline dotted}"
    ".txlab-tokens i.s{background:radial-gradient(circle,currentColor .5px,transparent 1px) center/1ch 1em;opacity:.55}"
    ".txlab-tokens i.n::before{content:'\\21b5';opacity:.45;font-style:normal}"
    ".txlab-tokens i.t::before{content:'\\21e5';opacity:.45;font-style:normal}"
    ".txlab-tokens details,.txlab-tokens summary{display:inline}"
    ".txlab-tokens summary,.txlab-tokens .gap{cursor:pointer;opacity:.75;font-style:italic;margin:0 .4em}"
    ".txlab-tokens .gap{cursor:default}"
    "@media(forced-colors:active){.txlab-tokens b.on{text-decoration:underline}}"
)


@dataclass(frozen=True, slots=True, eq=False)
class Shade:
    """How tokens are shaded: ``values`` (N,) from -1 to 1, 0 for those that do not count, NaN for no statement."""

    values: np.ndarray
    label: str  # what is shaded
    full: float  # the figure where the shading is strongest


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """N tokens and what is known of each; ``figures`` are (N,) float64, NaN where there is none."""

    ids: np.ndarray  # (N,) int64
    decode: Decode
    note: str
    shade: Shade | None = None
    figures: Mapping[str, np.ndarray] = field(default_factory=dict)
    targets: Mapping[int, str] = field(default_factory=dict)  # what is predicted there, where that is something else

    @property
    def counted(self) -> np.ndarray:
        """Which tokens count, (N,) bool."""
        if self.shade is None:
            return np.zeros(len(self.ids), bool)
        return np.isfinite(self.shade.values) & (self.shade.values != 0)


@dataclass(frozen=True, slots=True)
class Room:
    """How much is shown: of a stretch of more than ``stretch`` tokens, ``keep`` at both ends; ``total`` in all."""

    stretch: int = 200
    keep: int = 80
    total: int = 2048
    unfolds: int = 4096  # longer stretches are only counted


GALLERY = Room(stretch=64, keep=24, total=192, unfolds=0)


def strip_text(strip: Strip, limit: int = 2000) -> str:
    """The note, and the text with what counts in brackets; at most about ``limit`` tokens of it."""
    shown = _pieces(strip, 0, min(len(strip.ids), limit))
    counted = strip.counted
    parts = []
    for start, end in _runs(counted[: len(shown)]):
        text = "".join(shown[start:end])
        parts.append(f"⟦{text}⟧" if counted[start] else text)
    more = f" … {len(strip.ids) - limit:,} more tokens" if len(strip.ids) > limit else ""
    return f"{strip.note}\n{''.join(parts)}{more}"


def _pieces(strip: Strip, start: int, end: int) -> list[str]:
    """What each of these tokens adds to the text; of those that make up one character, the last has it."""
    return strip.decode(strip.ids[start:end], strip.ids[:start], special=True)


# ---------------------------------------------------------------------------------- stretches


def stretches(counted: np.ndarray, room: Room) -> list[tuple[int, int, bool]]:
    """(start, end, whether it is shown) of (N,) tokens: of each long stretch of a kind, the middle is not."""
    found: list[tuple[int, int, bool]] = []
    left = room.total
    for run_start, run_end in _runs(counted):
        inner = (run_start + room.keep, run_end - room.keep)
        borders = (run_start, *inner, run_end) if run_end - run_start > room.stretch else (run_start, run_end)
        for start, end in pairwise(borders):
            shown = left > 0 and (start, end) != inner
            left -= (end - start) * shown
            if found and found[-1][2] == shown:
                start = found.pop()[0]
            found.append((start, end, shown))
    return found


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of the stretches of equal values of (N,) bools."""
    borders = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    return list(pairwise(borders)) if len(mask) else []


# -------------------------------------------------------------------------------------- HTML


def strip_html(strip: Strip, room: Room = Room()) -> str:
    """The tokens of a strip in one block."""
    parts = []
    for start, end, shown in stretches(strip.counted, room):
        if shown:
            parts.append(_spans(strip, start, end))
        elif end - start > room.unfolds:
            parts.append(f'<span class="gap">… {end - start:,} tokens …</span>')
        else:
            parts.append(f"<details><summary>… {end - start:,} tokens …</summary>{_spans(strip, start, end)}</details>")
    return f'<div class="txlab-tokens">{"".join(parts)}</div>'


def legend_html(shade: Shade | None) -> str:
    """What the shading means."""
    if shade is None:
        return ""
    values = shade.values[np.isfinite(shade.values)]
    marks = [-1.0] * bool((values < 0).any()) + [0.0] * bool((values == 0).any()) + [1.0] * bool((values > 0).any())
    swatches = " ".join(
        f'<b style="{_look(mark)};padding:1px 6px" class="{"on" if mark else ""}">{mark * shade.full:g}</b>'
        for mark in marks
    )
    return f'<span class="txlab-tokens legend">{escape(shade.label)} {swatches}</span>'


def _spans(strip: Strip, start: int, end: int) -> str:
    shade = strip.shade.values if strip.shade else np.full(len(strip.ids), np.nan)
    return "".join(
        _span(piece, float(shade[i]), _title(strip, i), i in strip.targets)
        for i, piece in enumerate(_pieces(strip, start, end), start)
    )


def _span(piece: str, shade: float, title: str, other: bool) -> str:
    classes = ["on"] * bool(np.isfinite(shade) and shade) + ["other"] * other
    attributes = {"class": " ".join(classes), "style": _look(shade), "title": title}
    written = "".join(f' {name}="{text_html(value)}"' for name, value in attributes.items() if value)
    return f"<b{written}>{_visible(piece)}</b>"


def _look(shade: float) -> str:
    """Inline style, which also holds where style sheets are stripped."""
    if not np.isfinite(shade):
        return ""
    if shade == 0:
        return DIM
    strength = 0.1 + 0.35 * abs(shade)
    return f"background-color:rgba({BLUE if shade > 0 else ORANGE},{strength:.2f})"


def _title(strip: Strip, i: int) -> str:
    facts = [f"token {strip.ids[i]}"]
    facts += [f"{name} {values[i]:.4g}" for name, values in strip.figures.items() if np.isfinite(values[i])]
    if i in strip.targets:
        facts.append(f"to be predicted: {strip.targets[i]}")
    return " · ".join(facts)


_SIGNS = {" ": '<i class="s"> </i>', "\n": '<i class="n"></i>\n', "\t": '<i class="t"></i>\t'}


_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # for HTML and XML


def text_html(text: str) -> str:
    """Escaped text, with pictures of control characters in their place."""
    return escape(_UNFIT.sub(lambda c: chr(0x2400 + ord(c.group())) if c.group() < " " else "\ufffd", text))


def _visible(text: str) -> str:
    """Escaped text with its spaces and line breaks marked."""
    return re.sub(r"[ \n\t]", lambda sign: _SIGNS[sign.group()], text_html(text))
