"""The board as plain text, and how numbers are written everywhere on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from txlab.engine.bus import LOSS, AdapterView
from txlab.notebook.views.frame import Excerpt, Frame

COLUMNS = ("adapter", "rank", "step", "loss", "tokens/s", "memory", "state")
MAX_ROWS = 16
_BARS = "▁▂▃▄▅▆▇█"
_BUSY = ("training", "sampling", "queued", "failed")


def render_text(frame: Frame) -> str:
    """The whole board as text."""
    parts = [headline(frame), render_table(frame.view.adapters)]
    parts += [_sparkline_row(adapter) for adapter in visible(frame.view.adapters) if LOSS in adapter.curves]
    parts += [_sample_line(excerpt) for excerpt in frame.excerpts]
    return "\n".join(parts)


def headline(frame: Frame) -> str:
    """Base model, address and compiles in one line."""
    return f"txlab · {frame.model} · {frame.url} · {compiles(frame)}"


def compiles(frame: Frame) -> str:
    """How many programs XLA compiled, and how long that took."""
    count = frame.view.compiles
    return f"{count} compile{'' if count == 1 else 's'} ({frame.view.compile_seconds:.1f} s)"


def render_table(adapters: Sequence[AdapterView]) -> str:
    """A row per adapter, aligned."""
    if not adapters:
        return "no adapters yet"
    shown = visible(adapters)
    rows = [COLUMNS, *(cells(adapter) for adapter in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if 0 < i < 6 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(
        [line.rstrip() for line in lines] + ([hidden_note(adapters)] if len(shown) < len(adapters) else [])
    )


def visible(adapters: Sequence[AdapterView]) -> tuple[AdapterView, ...]:
    """At most MAX_ROWS adapters in order of creation: the busy ones first of all, then the newest."""
    ranked = sorted(range(len(adapters)), key=lambda i: (adapters[i].state in _BUSY, i), reverse=True)
    return tuple(adapters[i] for i in sorted(ranked[:MAX_ROWS]))


def hidden_note(adapters: Sequence[AdapterView]) -> str:
    """Says how many adapters have no row."""
    return f"… and {len(adapters) - MAX_ROWS} more adapters"


def cells(adapter: AdapterView) -> tuple[str, ...]:
    """The texts of an adapter's row, in the order of COLUMNS."""
    return (
        adapter.name or adapter.model_id,
        str(adapter.rank),
        f"{adapter.step:,}",
        number(adapter.loss),
        "–" if adapter.tokens_per_second is None else f"{adapter.tokens_per_second:,.0f}",
        memory(adapter.memory_bytes),
        adapter.state,
    )


def number(value: float | None) -> str:
    """Four significant digits, four decimals at most; an en dash for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 3 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(digits, 4)}f}"
    return f"{value:.1e}"


def memory(count: int) -> str:
    """Bytes in the largest decimal unit that leaves a number above one."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _sparkline_row(adapter: AdapterView) -> str:
    losses = [y for y in adapter.curves[LOSS][:, -1].tolist() if math.isfinite(y)]
    if not losses:
        return f"{adapter.name}: no finite loss"
    return f"{adapter.name}  loss {number(losses[0])} {sparkline(losses)} {number(losses[-1])}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Finite values as a row of at most ``width`` bars."""
    picked = [values[i * len(values) // width] for i in range(width)] if len(values) > width else list(values)
    low, high = min(picked), max(picked)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in picked)


def sample_note(excerpt: Excerpt) -> str:
    """How much of a sample there is, and what it is doing or why it ended."""
    tokens = f"{excerpt.tokens} token{'' if excerpt.tokens == 1 else 's'}"
    return (
        f"{tokens}  ·  sampling" if excerpt.live else f"{tokens} in {excerpt.seconds:.2g} s  ·  {excerpt.stop_reason}"
    )


def _sample_line(excerpt: Excerpt) -> str:
    return f"{excerpt.name} [{sample_note(excerpt)}]  {flat(excerpt.prompt)} → {flat(excerpt.text)}"


def flat(text: str) -> str:
    """One line of text: line breaks as a sign, what cannot be shown left out."""
    kept = "".join(c for c in text.replace("\r", "").replace("\n", " ↵ ").replace("\t", " ") if c.isprintable())
    return " ".join(kept.split())
