"""Small tables: headers with a scope, escaped cells, aligned text."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.notebook.views.html import Page
from txlab.notebook.views.tables import (
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
    assert [e.text for e in page.all("td", "number")] == ["12", "3"]
    assert [e.text for e in page.all("code")] == ["tinker://x", ""]
    assert [e.text for e in page.all("caption")] == ["two runs"]


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
    assert facts_text([("name", "pirate"), ("id", "7")]) == "name  pirate\nid    7"
    assert facts_text([]) == ""


def test_moments_and_counts() -> None:
    when = datetime(2026, 11, 23, 16, 30, tzinfo=UTC)
    assert moment(when) == when.astimezone().strftime("%Y-%m-%d %H:%M")
    assert moment(None) == "–"
    assert [plural(n, "token") for n in (0, 1, 2000)] == ["0 tokens", "1 token", "2,000 tokens"]
