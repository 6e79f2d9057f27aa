"""The lab itself, and what it does at one moment, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from txlab.engine.bus import LabView
from txlab.notebook.views.tables import Column, face_html, line_html, table_html
from txlab.notebook.views.text import TEXTS, cells, engine_facts, hidden_note, visible

FACTS = (Column("engine"), Column("now", "number"), Column(""))


def lab_html(model: str, url: str, loop: str, exports: str) -> str:
    """What is served where, and how a terminal gets there."""
    return face_html(
        "txlab",
        f"txlab serves <b>{escape(model)}</b> at <code>{escape(url)}</code> ({escape(loop)} loop)",
        f"<details><summary>Use it from a terminal</summary><pre>{escape(exports)}</pre></details>",
    )


def stopped_html(model: str) -> str:
    """A lab that does not run."""
    return face_html("txlab", f"txlab: <b>{escape(model)}</b>, stopped")


def status_html(lines: Sequence[str], view: LabView) -> str:
    """What the engine does, and a row per adapter."""
    engine = table_html(FACTS, [(fact.name, fact.value, fact.note) for fact in engine_facts(view)])
    return face_html("status of the lab", *map(line_html, lines), engine, _adapters(view))


def _adapters(view: LabView) -> str:
    if not view.adapters:
        return line_html("no adapters yet")
    shown = visible(view.adapters)
    more = line_html(hidden_note(view.adapters)) if len(shown) < len(view.adapters) else ""
    rows = [cells(adapter) for adapter in shown]
    columns = [Column(name, "text" if name in TEXTS else "number") for name in rows[0]]
    return table_html(columns, [tuple(row.values()) for row in rows]) + more
