"""The board as one self-contained SVG: headline, a row per adapter, the curves, the newest samples."""

from __future__ import annotations

import unicodedata
from html import escape

from txlab.engine.bus import LOSS, AdapterView
from txlab.notebook.views.charts import Box, curve, draw_chart
from txlab.notebook.views.frame import Excerpt, Frame
from txlab.notebook.views.style import COLORS, stylesheet
from txlab.notebook.views.text import COLUMNS, cells, compiles, flat, hidden_note, sample_note, visible

WIDTH = 920
PAD = 24
ROW = 26
CHART_HEIGHT = 220
NAME_CHARS = 38
MAX_LABELLED = 8  # curves with a value at their end; more would not be told apart
LINE_CHARS = 119  # monospaced characters of 12 px across the card
PROMPT_CHARS = 110
SAMPLE_LINES = 3
_STOPS = (PAD + 20, 366, 446, 546, 650, 760, 842)  # x of each column, aligned as below
_ALIGN = ("", "end", "end", "end", "end", "end", "mid")


def render_svg(frame: Frame, in_page: bool = False) -> str:
    """A board as SVG text. ``in_page`` is for inline use in JupyterLab; otherwise the SVG stands alone."""
    parts, y = _headline(frame)
    for section in (_table, _notes, _chart, _samples):
        section_parts, y = section(frame, y)
        parts += section_parts
    height = y + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="txlab" width="{WIDTH}" height="{height:g}" '
        f'viewBox="0 0 {WIDTH} {height:g}" style="max-width:100%;height:auto" role="img" aria-label="txlab board">'
        f"<style>{stylesheet(in_page)}</style>"
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:g}" rx="10"/>{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, content: str, css: str = "") -> str:
    return f'<text class="{css}" x="{x:g}" y="{y:g}">{escape(content)}</text>'


def _headline(frame: Frame) -> tuple[list[str], float]:
    live = [_text(WIDTH - PAD, 36, "● live", "end small training")] if frame.live else []
    return [
        *live,
        _text(PAD, 36, clip(frame.model, 80), "title"),
        _text(PAD, 58, f"{frame.url}  ·  {compiles(frame)}", "mute small"),
    ], 78


def _table(frame: Frame, y: float) -> tuple[list[str], float]:
    adapters = frame.view.adapters
    if not adapters:
        return [_text(PAD, y + 16, "No adapters yet: create_lora_training_client(...) makes one.", "mute")], y + ROW
    heads = [
        _text(x, y + 12, name, f"head mute {_ALIGN[i]}")
        for i, (x, name) in enumerate(zip(_STOPS, COLUMNS, strict=True))
    ]
    parts = [*heads, f'<path class="axis" d="M{PAD} {y + 20:g}H{WIDTH - PAD}"/>']
    y += 22
    shown = visible(adapters)
    colors = _colors(frame)
    for adapter in shown:
        parts += _row(adapter, colors[adapter.model_id], y)
        y += ROW
    if len(shown) < len(adapters):
        parts.append(_text(_STOPS[0], y + 17, hidden_note(adapters), "mute small"))
        y += ROW
    return parts, y


def _row(adapter: AdapterView, color: str, y: float) -> list[str]:
    base = y + 18
    name, *numbers, state = cells(adapter)
    parts = [f'<rect class="{color}" x="{PAD}" y="{base - 9:g}" width="10" height="10" rx="3"/>']
    parts.append(_text(_STOPS[0], base, clip(name, NAME_CHARS), "strong"))
    parts += [_text(x, base, value, "end") for x, value in zip(_STOPS[1:-1], numbers, strict=True)]
    parts.append(
        f'<rect class="pill {state}" x="{_STOPS[-1] - 46:g}" y="{base - 14:g}" width="92" height="20" rx="10"/>'
    )
    parts.append(_text(_STOPS[-1], base, state, f"mid small {state}"))
    return parts


def _notes(frame: Frame, y: float) -> tuple[list[str], float]:
    """What went wrong, a line per failed adapter."""
    failed = [a for a in visible(frame.view.adapters) if a.state == "failed" and a.message]
    parts = []
    for adapter in failed:
        parts.append(_text(_STOPS[0], y + 14, clip(f"{adapter.name}: {flat(adapter.message)}", 130), "small failed"))
        y += 20
    return parts, y


def _chart(frame: Frame, y: float) -> tuple[list[str], float]:
    if not frame.view.adapters:
        return [], y
    colors = _colors(frame)
    curves = [
        curve(a.name, colors[a.model_id], a.curves[LOSS][:, [0, 3]]) for a in frame.view.adapters if LOSS in a.curves
    ]
    box = Box(PAD + 44, y + 44, WIDTH - 2 * PAD - 44 - 56, CHART_HEIGHT)
    return draw_chart(curves, box, labels=len(curves) <= MAX_LABELLED), y + CHART_HEIGHT + 100


def _colors(frame: Frame) -> dict[str, str]:
    return {adapter.model_id: f"c{i % COLORS}" for i, adapter in enumerate(frame.view.adapters)}


# ------------------------------------------------------------------------------------ samples


def _samples(frame: Frame, y: float) -> tuple[list[str], float]:
    if not frame.excerpts:
        return [], y
    parts = [_text(PAD, y + 8, "Latest samples", "strong"), f'<path class="axis" d="M{PAD} {y + 18:g}H{WIDTH - PAD}"/>']
    y += 20
    colors = {a.name: color for a, color in zip(frame.view.adapters, _colors(frame).values(), strict=True)}
    for excerpt in frame.excerpts:
        lines = _sample_lines(excerpt)
        parts.append(_text(PAD, y + 18, clip(excerpt.name, 60), f"label {colors.get(excerpt.name, 'mute')}"))
        parts.append(
            _text(WIDTH - PAD, y + 18, sample_note(excerpt), f"end small {'sampling' if excerpt.live else 'mute'}")
        )
        for i, line in enumerate(lines):
            parts.append(f'<text class="mono" x="{PAD}" y="{y + 37 + 17 * i:g}">{line}</text>')
        y += 34 + 17 * len(lines)
    return parts, y + 6


def _sample_lines(excerpt: Excerpt) -> list[str]:
    """Lines of tspans: the prompt dimmed, what was drawn in full colour."""
    prompt = flat(excerpt.prompt)
    prompt = "…" + prompt[1 - PROMPT_CHARS :] if len(prompt) > PROMPT_CHARS else prompt
    drawn = flat(excerpt.text)
    joint = " " if prompt and drawn and (excerpt.prompt[-1:].isspace() or excerpt.text[:1].isspace()) else ""
    text, border = prompt + joint + drawn, len(prompt + joint)
    spans, more = wrap(text, LINE_CHARS), '<tspan class="mute">…</tspan>'
    if excerpt.live:  # its newest tokens
        lines = [_spans(text, start, end, border) for start, end in spans[-SAMPLE_LINES:]] or [""]
        lines[-1] += '<tspan class="sampling">▍</tspan>'
        return [more + lines[0], *lines[1:]] if len(spans) > SAMPLE_LINES else lines
    lines = [_spans(text, start, end, border) for start, end in spans[:SAMPLE_LINES]]
    if len(spans) > SAMPLE_LINES:
        lines[-1] += more
    return lines


def _spans(text: str, start: int, end: int, border: int) -> str:
    split = min(max(border, start), end)
    dim, drawn = escape(text[start:split]), escape(text[split:end])
    return (f'<tspan class="mute">{dim}</tspan>' if dim else "") + (
        f'<tspan class="drawn">{drawn}</tspan>' if drawn else ""
    )


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


def clip(text: str, width: int) -> str:
    """At most ``width`` characters of ``text`` in one line."""
    text = flat(text)
    return text if len(text) <= width else text[: width - 1] + "…"
