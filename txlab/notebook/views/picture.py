"""The board as one self-contained SVG: headline, the engine, a row per adapter, the curves, samples, pins."""

from __future__ import annotations

from html import escape

from txlab.engine.adapter_history import AdapterView
from txlab.notebook.views.charts import Box, board_chart, loss_spark
from txlab.notebook.views.curves import adapter_colors
from txlab.notebook.views.frame import Excerpt, Frame, PinView
from txlab.notebook.views.lines import wrap
from txlab.notebook.views.samples_html import by_adapter
from txlab.notebook.views.style import stylesheet
from txlab.notebook.views.text import (
    adapters_note,
    cells,
    clip,
    engine_facts,
    flat,
    hidden_note,
    mark_note,
    sample_note,
    visible,
)

WIDTH = 920
PAD = 24
ROW = 26
TILE_HEIGHT = 70
TILE_GAP = 8
CHART_HEIGHT = 286
LINE_CHARS = 119  # monospaced characters of 12 px across the card
PROMPT_CHARS = 110
SAMPLES = 4
SAMPLE_LINES = 3
SPARK_WIDTH, SPARK_HEIGHT = 50, 16
_COLUMNS = (  # x and alignment of each, and what else its texts are
    ("adapter", PAD + 20, "", "strong"),
    ("rank", 254, "end", ""),
    ("layers", 264, "", "small mute"),
    ("step", 395, "end", ""),
    ("loss", 508, "end", ""),
    ("lr", 566, "end", ""),
    ("grad norm", 640, "end", ""),
    ("tokens/s", 706, "end", ""),
    ("memory", 776, "end", ""),
    ("state", 856, "mid", "small"),
)
_SPARK_LEFT = 405
_PILL = 80  # wide


def render_svg(frame: Frame, in_page: bool = False) -> str:
    """A board as SVG text. ``in_page`` is for inline use in a notebook's page; otherwise the SVG stands alone."""
    parts, y = _headline(frame)
    for section in (_engine, _table, _notes, _chart, _samples, _pins):
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
        _text(PAD, 58, f"{frame.url}  ·  {adapters_note(frame)}", "mute small"),
    ], 76


def _engine(frame: Frame, y: float) -> tuple[list[str], float]:
    facts = engine_facts(frame.view)
    width = (WIDTH - 2 * PAD + TILE_GAP) / len(facts) - TILE_GAP
    parts = []
    for i, fact in enumerate(facts):
        x = PAD + i * (width + TILE_GAP)
        parts.append(
            f'<rect class="tile" x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{TILE_HEIGHT}" rx="7"/>'
            + _text(x + 10, y + 17, fact.name, "head mute")
            + _text(x + 10, y + 36, fact.value, "value")
            + _text(x + 10, y + 53, fact.note, "small mute")
        )
        if fact.share is not None:
            full = width - 20
            parts.append(f'<path class="bar" d="M{x + 10:.1f} {y + 61.5:g}h{full:.1f}"/>')
            parts.append(f'<path class="bar filled" d="M{x + 10:.1f} {y + 61.5:g}h{full * fact.share:.1f}"/>')
    return parts, y + TILE_HEIGHT + 18


# ----------------------------------------------------------------------------------- adapters


def _table(frame: Frame, y: float) -> tuple[list[str], float]:
    adapters = frame.view.adapters
    if not adapters:
        return [_text(PAD, y + 16, "No adapters yet: create_lora_training_client(...) makes one.", "mute")], y + ROW
    parts = [_text(x, y + 12, name, f"head mute {align}") for name, x, align, _ in _COLUMNS]
    parts.append(f'<path class="axis" d="M{PAD} {y + 20:g}H{WIDTH - PAD}"/>')
    y += 22
    shown, colors = visible(adapters), adapter_colors(adapters)
    for adapter in shown:
        parts += _row(adapter, colors[adapter.model_id], y)
        y += ROW
    if len(shown) < len(adapters):
        parts.append(_text(PAD + 20, y + 17, hidden_note(adapters), "mute small"))
        y += ROW
    return parts, y


def _row(adapter: AdapterView, color: str, y: float) -> list[str]:
    base, texts = y + 18, cells(adapter)
    middle, state = _COLUMNS[-1][1], adapter.state
    parts = [f'<rect class="{color}" x="{PAD}" y="{base - 9:g}" width="10" height="10" rx="3"/>']
    parts.append(
        f'<rect class="pill {state}" x="{middle - _PILL / 2:g}" y="{base - 14:g}" width="{_PILL}" height="20" rx="10"/>'
    )
    if path := loss_spark(adapter, SPARK_WIDTH, SPARK_HEIGHT):
        place = f"translate({_SPARK_LEFT} {base - 13:g})"
        parts.append(f'<path class="{color} line spark" transform="{place}" d="{path}"/>')
    return parts + [
        _text(x, base, texts[name], " ".join(filter(None, (kind, state if name == "state" else "", align))))
        for name, x, align, kind in _COLUMNS
    ]


def _notes(frame: Frame, y: float) -> tuple[list[str], float]:
    """Lines below the table: failures, and marks of steps."""
    parts = []
    for adapter in visible(frame.view.adapters):
        message = adapter.message if adapter.state == "failed" else ""
        for note, css in ((flat(message), "failed"), (mark_note(adapter), "queued")):
            if note:
                parts.append(_text(PAD + 20, y + 14, clip(f"{adapter.name}: {note}", 130), f"small {css}"))
                y += 20
    return parts, y


def _chart(frame: Frame, y: float) -> tuple[list[str], float]:
    if not frame.view.adapters:
        return [], y
    return board_chart(frame, Box(PAD, y + 14, WIDTH - 2 * PAD, CHART_HEIGHT)), y + CHART_HEIGHT + 36


# -------------------------------------------------------------------------------------- texts


def _title(title: str, y: float) -> list[str]:
    return [_text(PAD, y + 8, title, "strong"), f'<path class="axis" d="M{PAD} {y + 18:g}H{WIDTH - PAD}"/>']


def _samples(frame: Frame, y: float) -> tuple[list[str], float]:
    if not frame.excerpts:
        return [], y
    parts = _title("Latest samples", y)
    y += 20
    colors = adapter_colors(frame.view.adapters)
    for excerpt in frame.excerpts[:SAMPLES]:
        lines = _sample_lines(excerpt)
        color = colors.get(excerpt.model_id or "", "mute")
        parts.append(_text(PAD, y + 18, clip(excerpt.name, 60), f"label {color}"))
        note = f"end small {'sampling' if excerpt.live else 'mute'}"
        parts.append(_text(WIDTH - PAD, y + 18, sample_note(excerpt), note))
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


def _pins(frame: Frame, y: float) -> tuple[list[str], float]:
    if not frame.pins:
        return [], y
    parts = _title("Pinned prompts", y + 8)
    y += 34
    adapters = frame.view.adapters
    colors = {a.name: color for a, color in zip(adapters, adapter_colors(adapters).values(), strict=True)}
    for pin in frame.pins:
        pin_parts, y = _pin(pin, colors, y)
        parts += pin_parts
    return parts, y


def _pin(pin: PinView, colors: dict[str, str], y: float) -> tuple[list[str], float]:
    """The prompt, then a line per adapter and step."""
    parts = [f'<text class="mono mute" x="{PAD}" y="{y + 12:g}">{escape(clip(pin.prompt, LINE_CHARS))}</text>']
    y += 22
    for name, texts in by_adapter(pin):
        parts.append(_text(PAD, y + 12, clip(name, 22), f"label {colors.get(name, 'mute')}"))
        for step, text in texts:
            parts.append(_text(262, y + 12, f"step {step:,}", "small mute end"))
            parts.append(f'<text class="mono drawn" x="276" y="{y + 12:g}">{escape(clip(text, 85))}</text>')
            y += 19
        y += 5
    return parts, y + 8
