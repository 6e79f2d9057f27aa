"""The board as plain text, and how numbers are written everywhere on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from txlab.engine.bus import LOSS, AdapterView, LabView
from txlab.lora.state import LoraConfig
from txlab.notebook.views.frame import Excerpt, Frame, PinView

TEXTS = ("adapter", "layers", "state")  # columns; the others are numbers, to the right
MAX_ROWS = 16
NAME_CHARS = 24
_BARS = "▁▂▃▄▅▆▇█"
_BUSY = ("training", "sampling", "queued", "failed")
_LAYERS = {"attn": "train_attn", "mlp": "train_mlp", "unembed": "train_unembed"}


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure of the engine; ``share`` is how much of what it can be it is, 0..1, where there is such a thing."""

    name: str
    value: str
    note: str = ""
    share: float | None = None


def render_text(frame: Frame) -> str:
    """The whole board as text."""
    facts = [f"{fact.name} {fact.value} ({fact.note})" for fact in engine_facts(frame.view)]
    parts = [headline(frame), " · ".join(facts[:4]), " · ".join(facts[4:]), render_table(frame.view.adapters)]
    parts += [f"{clip(a.name, NAME_CHARS)}  {note}" for a in visible(frame.view.adapters) if (note := mark_note(a))]
    parts += _sparkline_rows([adapter for adapter in visible(frame.view.adapters) if LOSS in adapter.curves])
    parts += [_sample_line(excerpt) for excerpt in frame.excerpts]
    parts += [line for pin in frame.pins for line in _pin_lines(pin)]
    return "\n".join(parts)


def headline(frame: Frame) -> str:
    """Base model, address and adapters in one line."""
    return f"txlab · {frame.model} · {frame.url} · {adapters_note(frame)}"


def adapters_note(frame: Frame) -> str:
    """How many adapters there are, and how many of them train."""
    there = [adapter.state for adapter in frame.view.adapters if adapter.state != "unloaded"]
    training = f", {there.count('training')} training" if "training" in there else ""
    return f"{len(there)} adapter{'' if len(there) == 1 else 's'}{training}"


def engine_facts(view: LabView) -> tuple[Fact, ...]:
    """What the engine is doing, and what its memory holds."""
    load, padding = view.load, view.padding
    return (
        Fact("queue", f"{load.queued}", "waiting"),
        Fact(
            "batch", f"{load.rows} of {load.max_rows}", f"{load.waiting_rows} waiting", share(load.rows, load.max_rows)
        ),
        Fact("padding", "–" if padding is None else f"{padding:.0%}", "of positions", padding),
        Fact("compiles", f"{view.compiles}", f"{view.compile_seconds:.1f} s"),
        Fact(
            "KV cache",
            memory(load.cache_bytes),
            f"of {memory(load.max_cache_bytes)}",
            share(load.cache_bytes, load.max_cache_bytes),
        ),
        Fact("device", memory(load.device_bytes), "in use"),
        Fact("host", memory(load.host_bytes), "kept steps"),
    )


def share(part: float, whole: float) -> float:
    """``part`` of ``whole``, 0..1; 0 of nothing."""
    return min(part / whole, 1.0) if whole else 0.0


def render_table(adapters: Sequence[AdapterView]) -> str:
    """A row per adapter, aligned."""
    if not adapters:
        return "no adapters yet"
    shown = visible(adapters)
    rows = [cells(adapter) for adapter in shown]
    rows.insert(0, {column: column for column in rows[0]})
    widths = {column: max(len(row[column]) for row in rows) for column in rows[0]}
    lines = [
        "  ".join(
            cell.ljust(widths[column]) if column in TEXTS else cell.rjust(widths[column])
            for column, cell in row.items()
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


def cells(adapter: AdapterView) -> dict[str, str]:
    """The texts of an adapter's row by column, in order."""
    return {
        "adapter": clip(adapter.name or adapter.model_id, NAME_CHARS),
        "rank": str(adapter.rank),
        "layers": layers(adapter.lora),
        "step": f"{adapter.step:,}",
        "loss": number(adapter.loss),
        "lr": rate(adapter.learning_rate),
        "grad norm": number(adapter.grad_norm),
        "tokens/s": whole(adapter.tokens_per_second),
        "memory": memory(adapter.memory_bytes),
        "host": memory(adapter.host_bytes),
        "state": adapter.state,
    }


def layers(lora: LoraConfig) -> str:
    """Which kinds of layers an adapter changes."""
    kinds = [kind for kind, flag in _LAYERS.items() if getattr(lora, flag)]
    return "all" if len(kinds) == len(_LAYERS) else "+".join(kinds)


def run_note(adapter: AdapterView) -> str:
    """An adapter's run and session, short enough for a row."""
    session, _, run = adapter.model_id.partition(":")
    return f"{run} · {session[:8]}" if run else clip(session, NAME_CHARS)


def mark_note(adapter: AdapterView) -> str:
    """The newest remarkable thing about a step of an adapter; empty where there is none."""
    return f"step {adapter.marks[-1][0]:,}: {adapter.marks[-1][1]}" if adapter.marks else ""


def whole(value: float | None) -> str:
    """A number without decimals; an en dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """A learning rate as people write it: 0.02, 1e-4; an en dash for None."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 0.01 or not math.isfinite(value):
        return f"{value:.3g}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


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


def _sparkline_rows(adapters: Sequence[AdapterView]) -> list[str]:
    """Each adapter's loss from the first to the last, below each other."""
    names = [clip(adapter.name or adapter.model_id, NAME_CHARS) for adapter in adapters]
    width = max(map(len, names), default=0)
    return [f"{name.ljust(width)}  loss {_trend(adapter)}" for name, adapter in zip(names, adapters, strict=True)]


def _trend(adapter: AdapterView) -> str:
    losses = [y for y in adapter.curves[LOSS][:, -1].tolist() if math.isfinite(y)]
    return f"{number(losses[0])} {sparkline(losses)} {number(losses[-1])}" if losses else "not finite"


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


def printable(text: str) -> str:
    """``text`` with its line breaks and tabs, without what cannot be shown."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def clip(text: str, width: int) -> str:
    """At most ``width`` characters of ``text`` in one line."""
    text = flat(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _pin_lines(pin: PinView) -> list[str]:
    """The prompt, and what each adapter said last."""
    newest = {name: (step, text) for name, step, text in reversed(pin.texts)}
    lines = [f"  {clip(name, 30)}, step {step:,}: {clip(text, 80)}" for name, (step, text) in reversed(newest.items())]
    return [f"pinned: {clip(pin.prompt, 110)}", *lines]
