"""Small tables: headers with a scope, escaped cells, aligned text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.notebook.views.html import Page
from txlab.notebook.views.tables import (
    FACE_STYLE,
    Column,
    face_html,
    facts_html,
    facts_text,
    line_html,
    moment,
    plural,
    table_html,
    table_text,
)

EVIL = '<script>alert(\'&\')</script>"><b onclick="x">\x00\n'
COLUMNS = (Column("name"), Column("steps", "number"), Column("path", "code"), Column("said", "wrap"))


def test_a_table_names_its_rows_and_columns() -> None:
    page = Page(table_html(COLUMNS, [("pirate", "12", "tinker://x", "ahoy"), ("twin", "3", "", "")], "two runs"))
    heads = page.all("th")
    assert [(e.text, e.attributes["scope"]) for e in heads] == [
        ("name", "col"),
        ("steps", "col"),
        ("path", "col"),
        ("said", "col"),
        ("pirate", "row"),
        ("twin", "row"),
    ]
    assert [e.text for e in page.all("th", "number")] == ["steps"], "above its numbers"
    assert [e.text for e in page.all("td", "number")] == ["12", "3"]
    assert [e.text for e in page.all("td", "wrap")] == ["ahoy", ""]
    assert [e.text for e in page.all("code")] == ["tinker://x", ""]
    assert [e.text for e in page.all("caption")] == ["two runs"]


def test_facts_have_a_row_each() -> None:
    page = Page(facts_html([("rank", "8"), ("note", "long")], "a run"))
    assert [(e.text, e.attributes["scope"]) for e in page.all("th")] == [("rank", "row"), ("note", "row")]
    assert [e.text for e in page.all("td", "wrap")] == ["8", "long"]
    assert [e.text for e in page.all("caption")] == ["a run"]
    assert not Page(facts_html([("rank", "8")])).all("caption")


def test_a_face_is_a_named_group_with_its_style() -> None:
    face = Page(face_html("runs", "<p>a</p>", "<p>b</p>", style=".own{}")).elements
    assert face[0].attributes == {"class": "txlab-face", "role": "group", "aria-label": "runs"}
    assert [(e.tag, e.text) for e in face[1:]] == [("style", FACE_STYLE + ".own{}"), ("p", "a"), ("p", "b")]


def test_texts_of_users_are_text() -> None:
    columns = [Column(EVIL)] * 2
    html = face_html(
        EVIL,
        line_html(EVIL, "<i>markup</i>"),
        table_html(columns, [(EVIL, EVIL)], EVIL),
        facts_html([(EVIL, EVIL)], EVIL),
    )
    page = Page(html)
    page.assert_harmless()
    assert [e.text for e in page.all("i")] == ["markup"]
    assert not page.all("b")
    assert "\x00" not in html


def test_text_is_aligned() -> None:
    assert table_text(COLUMNS, [("pirate", "12", "a", "x\ny"), ("twin", "3", "bcd", "")]) == (
        "name    steps  path  said\npirate     12  a     x ↵ y\ntwin        3  bcd"
    )
    assert facts_text([("name", "pirate\nship"), ("id", "7")]) == "name  pirate ↵ ship\nid    7"
    assert facts_text([]) == ""


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clocks are nine hours ahead."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_east")
def test_moments_are_of_the_readers_clock() -> None:
    assert moment(datetime(2026, 11, 23, 16, 30, tzinfo=UTC)) == "2026-11-24 01:30"
    assert moment(None) == "–"


def test_counts() -> None:
    assert [plural(n, "token") for n in (0, 1, 2000)] == ["0 tokens", "1 token", "2,000 tokens"]
