"""A report as one HTML file that needs no network and no scripts, light or dark as its reader's system is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape

import numpy as np

from txlab.notebook.views.charts import Box, ChartOptions, draw_chart, metric_title
from txlab.notebook.views.curves import curve
from txlab.notebook.views.palette import DARK, DARK_CONTRAST, LIGHT, LIGHT_CONTRAST, Palette
from txlab.notebook.views.style import MONO, SANS, curve_class, stylesheet
from txlab.notebook.views.tables import FACE_STYLE, NOTHING, Column, facts_html, moment, plural, table_html
from txlab.notebook.views.text import flat, number, whole
from txlab.notebook.views.tokens import text_html

WIDTH, HEIGHT = 560, 290  # px of a chart
BOX = Box(62, 30, WIDTH - 62 - 70, HEIGHT - 30 - 42)
LABELLED = 8  # curves with a value at their end; more would not be told apart
FIRST = ("loss", "grad_norm", "learning_rate")  # charts, before those of other metrics
RUNS = (
    Column("run", "wrap"),
    Column("id", "code"),
    Column("rank", "number"),
    Column("layers"),
    Column("steps", "number"),
    Column("first loss", "number"),
    Column("last loss", "number"),
    Column("trained tokens", "number"),
    Column("created"),
    Column("state"),
)


@dataclass(frozen=True, slots=True, eq=False)
class ReportRun:
    """A training run; ``curves`` are (n, 4) by metric, see ``series.COLUMNS``."""

    name: str
    model_id: str
    rank: int
    layers: str
    step: int | None
    tokens: int | None
    created: datetime
    state: str
    curves: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class ReportSample:
    """A sampled text; ``note`` says by whom, how long and why it ended."""

    note: str
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class ReportTable:
    """Rows of texts under columns."""

    columns: tuple[Column, ...]
    rows: Sequence[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """All that a report shows; the newest samples and checkpoints first."""

    model: str
    written: datetime
    versions: Sequence[tuple[str, str]]
    runs: Sequence[ReportRun]
    samples: Sequence[ReportSample]
    checkpoints: ReportTable
    settings: Sequence[tuple[str, str]] = field(default_factory=tuple)


def render_report(report: Report) -> str:
    """The whole file."""
    title = f"txlab · {flat(report.model)}"
    sections = (_runs(report), _charts(report), _samples(report), _checkpoints(report), _setup(report))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f'<meta name="color-scheme" content="light dark"/><title>{escape(title)}</title>'
        f"<style>{page_style()}</style></head>"
        f'<body class="txlab-face"><main>{_headline(report)}{"".join(sections)}</main></body></html>\n'
    )


def _headline(report: Report) -> str:
    steps = sum(run.step or 0 for run in report.runs)
    tokens = sum(run.tokens or 0 for run in report.runs)
    facts = [plural(len(report.runs), "run"), plural(steps, "optimizer step"), plural(tokens, "trained token")]
    return (
        f"<header><h1>{escape(flat(report.model))}</h1><p>{' · '.join(facts)}</p>"
        f'<p class="mute">A report of txlab, written {moment(report.written)}</p></header>'
    )


def _section(title: str, *parts: str) -> str:
    return f'<section aria-label="{escape(title)}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def _runs(report: Report) -> str:
    if not report.runs:
        return _section("Runs", '<p class="mute">There are none yet.</p>')
    return _section("Runs", f'<div class="wide">{table_html(RUNS, [_cells(run) for run in report.runs])}</div>')


def _cells(run: ReportRun) -> tuple[str, ...]:
    losses = run.curves["loss"][:, 3] if "loss" in run.curves else np.empty(0)
    first, last = (number(float(losses[i])) if len(losses) else NOTHING for i in (0, -1))
    return (
        run.name,
        run.model_id,
        str(run.rank),
        run.layers,
        whole(run.step),
        first,
        last,
        whole(run.tokens),
        moment(run.created),
        run.state or NOTHING,
    )


# ------------------------------------------------------------------------------------- charts


def _charts(report: Report) -> str:
    metrics = {name for run in report.runs for name, points in run.curves.items() if len(points)}
    ordered = [name for name in FIRST if name in metrics] + sorted(metrics.difference(FIRST))
    if not ordered:
        return ""
    figures = "".join(_chart(report.runs, metric) for metric in ordered)
    return _section("Curves", _legend(report.runs), f'<div class="charts">{figures}</div>')


def _chart(runs: Sequence[ReportRun], metric: str) -> str:
    curves = [
        curve(flat(run.name), curve_class(i), run.curves[metric][:, [0, 3]])
        for i, run in enumerate(runs)
        if metric in run.curves
    ]
    title = flat(metric_title(metric))
    drawn = draw_chart(curves, BOX, ChartOptions(title=title, labels=len(curves) <= LABELLED, empty="no finite value"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="txlab" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)} by step">{"".join(drawn)}</svg>'
    )


def _legend(runs: Sequence[ReportRun]) -> str:
    marks = "".join(
        '<li><svg xmlns="http://www.w3.org/2000/svg" class="txlab" width="26" height="10" aria-hidden="true">'
        f'<g transform="scale(.1)"><path class="{curve_class(i)} line" d="M10 50H250"/></g></svg> '
        f"{escape(flat(run.name))}</li>"
        for i, run in enumerate(runs)
    )
    return f'<ul class="legend">{marks}</ul>'


# ----------------------------------------------------------------------------------- sections


def _samples(report: Report) -> str:
    if not report.samples:
        return ""
    blocks = "".join(
        f'<article><p class="mute">{escape(flat(sample.note))}</p><pre><span class="mute">{text_html(sample.prompt)}'
        f'</span><span class="drawn">{text_html(sample.text)}</span></pre></article>'
        for sample in report.samples
    )
    return _section("Newest samples", blocks)


def _checkpoints(report: Report) -> str:
    table = report.checkpoints
    if not table.rows:
        return ""
    return _section("Checkpoints", f'<div class="wide">{table_html(table.columns, table.rows)}</div>')


def _setup(report: Report) -> str:
    settings = f"<details><summary>All settings</summary>{facts_html(report.settings)}</details>"
    return _section("Made with", facts_html(report.versions), settings if report.settings else "")


# --------------------------------------------------------------------------------------- style

_PAGE = f"""
html{{background:var(--card);color:var(--text)}} body{{margin:0;font-family:{SANS}}}
main{{max-width:1180px;margin:0 auto;padding:32px 24px 64px}}
h1{{font-size:24px;margin:0;overflow-wrap:anywhere}} header p{{margin:.2em 0}}
h2{{font-size:17px;margin:2em 0 .5em;padding-bottom:.3em;border-bottom:1px solid var(--border)}}
.mute,.txlab-face .line{{color:var(--mute);opacity:1}} .drawn{{color:var(--drawn)}}
.wide{{overflow-x:auto}} .legend{{list-style:none;display:flex;flex-wrap:wrap;gap:.2em 1.4em;margin:0 0 .8em;padding:0}}
.charts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:16px}}
.charts svg{{width:100%;height:auto;background:var(--raised);border:1px solid var(--border);border-radius:8px}}
article{{margin:0 0 14px;padding:8px 14px;border:1px solid var(--border);border-radius:8px}}
article p{{margin:0 0 .3em}}
pre{{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.6 {MONO}}}
code{{font-family:{MONO}}} summary{{cursor:pointer;padding:.4em 0}}
@media print{{.charts svg,article{{break-inside:avoid}}}}
"""


def page_style() -> str:
    """The file's style sheet, its charts' too."""
    themes = (
        ("", LIGHT),
        ("(prefers-color-scheme:dark)", DARK),
        ("(prefers-contrast:more)", LIGHT_CONTRAST),
        ("(prefers-contrast:more) and (prefers-color-scheme:dark)", DARK_CONTRAST),
    )
    colors = "".join(
        f"@media {media}{{{_variables(palette)}}}" if media else _variables(palette) for media, palette in themes
    )
    return f"{colors}{FACE_STYLE}{stylesheet(in_page=False)}{_PAGE}"


def _variables(palette: Palette) -> str:
    return f":root{{{''.join(f'--{name}:{color};' for name, color in palette.named())}}}"
