"""A report's file: complete, escaped, and in need of nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests.notebook.browser import FLAGS
from tests.notebook.views.html import Page
from txlab.notebook.views.palette import DARK, LIGHT, Palette
from txlab.notebook.views.report_html import Report, ReportRun, ReportSample, ReportTable, render_report
from txlab.notebook.views.tables import Column, moment

EVIL = '<script>alert(\'&\')</script>"><b onclick="x">\x00\ud800\n'
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def points(*values: float) -> np.ndarray:
    steps = np.arange(1.0, len(values) + 1)
    return np.column_stack([steps, steps * 100, steps, values])  # (n, 4)


def run(name: str, **curves: np.ndarray) -> ReportRun:
    return ReportRun(name, f"id-{name}", 8, "all", 3, 300, NOW, "idle", curves)


def report(*runs: ReportRun, **more: object) -> Report:
    empty: dict[str, object] = {"model": "base/model", "versions": (("jax", "1.2.3"),)}
    empty |= {"samples": (), "checkpoints": ReportTable(())}
    return Report(written=NOW, runs=runs, **empty | more)  # type: ignore[arg-type]


def charts(html: str) -> list[str]:
    return [e.attributes["aria-label"] for e in Page(html).all("svg") if "aria-label" in e.attributes]


def test_every_metric_has_a_chart_the_loss_first() -> None:
    one = run("one", reward=points(1, 2), loss=points(3, 2), learning_rate=points(1, 1))
    own = {name: points(0.5) for name in ("accuracy", "kl", "length", "entropy")}
    two = run("two", grad_norm=points(5, 4), nothing=np.empty((0, 4)), **own)
    assert charts(render_report(report(one, two))) == [
        "loss per token by step",
        "gradient norm by step",
        "learning rate by step",
        "accuracy by step",
        "entropy by step",
        "kl by step",
        "length by step",
        "reward by step",
    ]


def test_a_curve_has_the_colour_that_the_legend_says_and_runs_over_steps() -> None:
    runs = [run("first", reward=points(5, 4, 3)), run("second", loss=points(3, 2, 1), reward=points(1, 2, 3))]
    page = Page(render_report(report(*runs)))
    assert [e.text.strip() for e in page.all("li")] == ["first", "second"]
    assert [e.attributes["class"] for e in page.all("path", "line")] == [
        *("c0 line", "c1 line"),  # the legend
        "c1 line",  # the loss, which the first has not
        *("c0 line", "c1 line"),
    ]
    assert [e.text for e in page.all("path", "line")][2:] == ["second", "first", "second"]
    assert "300" not in [e.text for e in page.all("text", "tick")], "steps, not tokens"


@pytest.mark.parametrize(("runs", "labels"), [(8, 8), (9, 0)])
def test_few_curves_say_where_they_end(runs: int, labels: int) -> None:
    page = Page(render_report(report(*(run(f"run-{i}", loss=points(3, 2)) for i in range(runs)))))
    assert len(page.all("text", "label")) == labels


def test_a_run_says_how_far_it_came() -> None:
    page = Page(render_report(report(run("one", loss=points(3, 2.5, 1.25)))))
    cells = [e.text for e in page.elements if e.tag == "td" or e.attributes.get("scope") == "row"][:10]
    assert cells == ["one", "id-one", "8", "all", "3", "3.000", "1.250", "300", moment(NOW), "idle"]
    assert f"written {moment(NOW)}" in page.all("header")[0].text
    assert "1 run · 3 optimizer steps · 300 trained tokens" in page.elements[0].text
    assert "1.2.3" in page.elements[0].text


def test_what_is_not_known_of_a_run_is_a_dash() -> None:
    page = Page(render_report(report(ReportRun("one", "id", 8, "all", None, None, NOW, "", {}))))
    assert [e.text for e in page.all("td")][3:9] == ["–", "–", "–", "–", moment(NOW), "–"]


def test_sections_follow_each_other_where_there_is_something_in_them() -> None:
    sample = ReportSample("pirate · 1 token", "Where is", " the ship?")
    checkpoints = ReportTable((Column("path"), Column("step")), [("tinker://x", "7")])
    full = {"samples": [sample], "checkpoints": checkpoints, "settings": [("server.port", "8017")]}
    page = Page(render_report(report(run("one", loss=points(3, 2)), **full)))
    assert [e.text for e in page.all("h2")] == ["Runs", "Curves", "Newest samples", "Checkpoints", "Made with"]
    assert [e.text for e in page.all("article")] == ["pirate · 1 tokenWhere is the ship?"]
    assert [e.text for e in page.all("span", "drawn")] == [" the ship?"]
    assert "tinker://x" in page.all("section")[3].text
    assert "server.port8017" in page.all("details")[0].text
    bare = Page(render_report(report()))
    assert [e.text for e in bare.all("h2")] == ["Runs", "Made with"]
    assert not bare.all("details")


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
            model=EVIL,
        )
    )
    page = Page(html)
    page.assert_harmless()
    assert not page.all("b")
    assert page.elements[0].text.count("alert") >= 12
    assert all("<script>" in e.text for e in [*page.all("h1"), *page.all("title"), *page.all("pre")])
    html.encode()  # no lone surrogates
    assert "\x00" not in html


def test_it_needs_nothing_else() -> None:
    html = render_report(report(run("one", loss=points(3, 2))))
    page = Page(html)
    page.assert_harmless()
    assert page.elements[0].attributes == {"lang": "en"}
    assert page.all("meta")[0].attributes == {"charset": "utf-8"}
    assert html.count("http") == html.count("http://www.w3.org/2000/svg")


@pytest.mark.parametrize(("scheme", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_it_is_seen_in_the_readers_colours_without_a_network(
    scheme: str, palette: Palette, tmp_path: Path, chromium: str
) -> None:
    from playwright.sync_api import sync_playwright

    file = tmp_path / "run.html"
    long = replace(run("one", loss=points(3, 2, 1)), name="a name that goes on and on " * 4)
    file.write_text(render_report(report(long, samples=[ReportSample("note", "Where", " 🍌")])), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(color_scheme=scheme, offline=True, viewport={"width": 1280, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        color = "([css, name]) => getComputedStyle(document.querySelector(css))[name]"
        colors = [
            page.evaluate(color, [css, name])
            for css, name in (("html", "backgroundColor"), ("td", "color"), (".charts .line", "stroke"))
        ]
        fits = "[...document.querySelectorAll('.wide, html')].every(e => e.scrollWidth <= e.clientWidth)"
        assert page.evaluate(fits), "nothing is cut off"
        browser.close()
    assert asked == [file.as_uri()]
    assert colors == [rgb(color) for color in (palette.card, palette.text, palette.curves[0])]


def rgb(color: str) -> str:
    """``#rrggbb`` as a browser says it."""
    return f"rgb({', '.join(str(byte) for byte in bytes.fromhex(color.removeprefix('#')))})"
