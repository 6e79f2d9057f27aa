"""Small tables, as HTML that takes the page's own colours and as aligned text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Literal

from txlab.notebook.views.text import flat

FACE_STYLE = (
    ".txlab-face{color:inherit;font-size:13px;line-height:1.5;overflow-x:auto;max-width:100%}"
    ".txlab-face h4{font-size:14px;font-weight:650;margin:.2em 0 .4em}"
    ".txlab-face .line{margin:.5em 0 .2em;opacity:.8}"
    ".txlab-face.txlab-face table{border-collapse:collapse;border:0;margin:.3em 0 .5em;font-size:inherit;color:inherit;"
    "table-layout:auto}"
    ".txlab-face caption{text-align:left;caption-side:top;white-space:nowrap;padding:.2em 0;font-weight:600;"
    "color:inherit}"
    ".txlab-face.txlab-face tr:nth-child(n){background:none}"
    ".txlab-face.txlab-face tbody tr:hover{background:rgba(128,128,128,.12)}"
    ".txlab-face.txlab-face :is(th,td){text-align:left;vertical-align:baseline;padding:.28em 1em .28em 0;border:0;"
    "border-bottom:1px solid rgba(128,128,128,.28);max-width:none;white-space:nowrap;font-weight:400}"
    ".txlab-face.txlab-face thead th{font-size:11.5px;letter-spacing:.03em;opacity:.7}"
    ".txlab-face.txlab-face tbody th{font-weight:600}"
    ".txlab-face.txlab-face tbody th code{font-weight:400}"
    ".txlab-face.txlab-face .number{text-align:right;font-variant-numeric:tabular-nums}"
    ".txlab-face.txlab-face .wrap{white-space:normal;overflow-wrap:anywhere;min-width:13em}"
    ".txlab-face.txlab-face code{background:none;padding:0;font-size:12px;color:inherit}"
)

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """A column's name, and what its cells are: numbers are aligned right, long texts may be broken."""

    name: str
    kind: Literal["text", "number", "code", "wrap"] = "text"


def face_html(label: str, *parts: str, style: str = "") -> str:
    """One output of a cell: what is seen, with the style that it needs."""
    return (
        f'<div class="txlab-face" role="group" aria-label="{_cell(label)}">'
        f"<style>{FACE_STYLE}{style}</style>{''.join(parts)}</div>"
    )


def line_html(text: str, aside: str = "") -> str:
    """A line of text, with HTML after it."""
    gap = "&#8194;" if aside else ""
    return f'<div class="line">{_cell(text)}{gap}{aside}</div>'


def table_html(columns: Sequence[Column], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table whose first column names the rows."""
    head = "".join(f'<th scope="col"{_css(column)}>{_cell(column.name)}</th>' for column in columns)
    body = "".join(f"<tr>{_row(columns, row)}</tr>" for row in rows)
    told = f"<caption>{_cell(caption)}</caption>" if caption else ""
    return f"<table>{told}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts_html(facts: Sequence[tuple[str, str]], caption: str = "") -> str:
    """A table of names and what they are."""
    body = "".join(
        f'<tr><th scope="row">{_cell(name)}</th><td class="wrap">{_cell(value)}</td></tr>' for name, value in facts
    )
    told = f"<caption>{_cell(caption)}</caption>" if caption else ""
    return f"<table>{told}<tbody>{body}</tbody></table>"


def table_text(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """The same table as lines of text."""
    lines = [[column.name for column in columns], *([flat(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column.kind == "number" else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    )


def facts_text(facts: Sequence[tuple[str, str]]) -> str:
    """Names and what they are, a line each."""
    width = max((len(name) for name, _ in facts), default=0)
    return "\n".join(f"{name.ljust(width)}  {flat(value)}" for name, value in facts)


def moment(time: datetime | None) -> str:
    """A point in time in this machine's zone, to the minute."""
    return NOTHING if time is None else f"{time.astimezone():%Y-%m-%d %H:%M}"


def plural(count: int, thing: str) -> str:
    """``3 tokens``, ``1 token``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _row(columns: Sequence[Column], row: Sequence[str]) -> str:
    first, *others = [
        f"<code>{_cell(cell)}</code>" if column.kind == "code" else _cell(cell)
        for column, cell in zip(columns, row, strict=True)
    ]
    named = f'<th scope="row"{_css(columns[0])}>{first}</th>'
    return named + "".join(f"<td{_css(column)}>{cell}</td>" for column, cell in zip(columns[1:], others, strict=True))


def _cell(text: str) -> str:
    return escape(flat(text))


def _css(column: Column) -> str:
    return f' class="{column.kind}"' if column.kind in ("number", "wrap") else ""
