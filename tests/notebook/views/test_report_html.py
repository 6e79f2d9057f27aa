"""A report's file: complete, escaped, and in need of nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from tests.notebook.views.html import Page
from txlab.notebook.views.report_html import Report, ReportRun, ReportSample, ReportTable, render_report
from txlab.notebook.views.tables import Column

EVIL = '<script>alert(\'&\')</script>"><b onclick="x">\x00\ud800\n'
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def points(*values: float) -> np.ndarray:
    steps = np.arange(1.0, len(values) + 1)
    return np.column_stack([steps, steps * 100, steps, values])  # (n, 4)


def run(name: str, **curves: np.ndarray) -> ReportRun:
    return ReportRun(name, f"id-{name}", 8, "all", 3, 300, NOW, "idle", curves)


def report(*runs: ReportRun, **more: object) -> Report:
    empty: dict[str, object] = {"samples": (), "checkpoints": ReportTable(()), "versions": (("jax", "1.2.3"),)}
    return Report(model="base/model", written=NOW, runs=runs, **empty | more)  # type: ignore[arg-type]


def charts(html: str) -> list[str]:
    return [e.attributes["aria-label"] for e in Page(html).all("svg") if "aria-label" in e.attributes]


def test_every_metric_has_a_chart_the_loss_first() -> None:
    one = run("one", reward=points(1, 2), loss=points(3, 2), learning_rate=points(1, 1))
    two = run("two", grad_norm=points(5, 4), accuracy=points(0.5), nothing=np.empty((0, 4)))
    assert charts(render_report(report(one, two))) == [
        "loss per token by step",
        "gradient norm by step",
        "learning rate by step",
        "accuracy by step",
        "reward by step",
    ]


def test_a_run_says_how_far_it_came() -> None:
    page = Page(render_report(report(run("one", loss=points(3, 2.5, 1.25)))))
    said = page.all("tbody")[0].text
    for expected in ("one", "id-one", "8", "3.000", "1.250", "300", "idle"):
        assert expected in said
    assert "1 run · 3 optimizer steps · 300 trained tokens" in page.elements[0].text
    assert "1.2.3" in page.elements[0].text


@pytest.mark.parametrize("runs", [0, 1, 64])
def test_any_number_of_runs(runs: int) -> None:
    html = render_report(report(*(run(f"run-{i}", loss=points(*np.linspace(5, 1, 2000))) for i in range(runs))))
    page = Page(html)
    page.assert_harmless()
    assert len(page.all("li")) == runs
    assert len(html) < 600_000
    assert ("There are none yet" in page.elements[0].text) == (runs == 0)


def test_values_that_are_no_numbers_do_no_harm() -> None:
    page = Page(render_report(report(run("one", loss=points(np.nan, np.inf)))))
    assert "no finite value" in page.elements[0].text
    assert "inf" in page.all("tbody")[0].text


def test_texts_of_users_and_models_are_text() -> None:
    evil = ReportRun(EVIL, EVIL, 8, EVIL, None, None, NOW, EVIL, {EVIL: points(1, 2), "loss": points(2, 1)})
    html = render_report(
        report(
            evil,
            versions=[(EVIL, EVIL)],
            samples=[ReportSample(EVIL, EVIL, EVIL)],
            checkpoints=ReportTable((Column(EVIL), Column(EVIL, "code")), [(EVIL, EVIL)]),
            settings=[(EVIL, EVIL)],
        )
    )
    page = Page(html)
    page.assert_harmless()
    assert page.elements[0].text.count("alert") >= 12
    html.encode()  # no lone surrogates
    assert "\x00" not in html


def test_it_needs_nothing_else() -> None:
    html = render_report(report(run("one", loss=points(3, 2))))
    Page(html).assert_harmless()
    assert "prefers-color-scheme" in html
    assert html.count("http") == html.count("http://www.w3.org/2000/svg")
