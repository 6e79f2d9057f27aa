"""Answers side by side: every character is there once, escaped, and marked where it should be."""

from __future__ import annotations

import pytest

from tests.notebook.views.html import Page
from txlab.notebook.views.answers import Answer, Text, answers_html, answers_text, differing

EVIL = '<script>alert("&")</script>\'><b onclick="x">'
BASE = Answer("base", (Text("the old ship sails", 4, "stop"),), base=True)


def pieces(*texts: str) -> tuple[tuple[str, float], ...]:
    return tuple((text, -float(i)) for i, text in enumerate(texts))


def test_each_has_a_column_and_a_name() -> None:
    page = Page(answers_html([BASE, Answer("<i>", (Text("a", 1, "stop"), Text("b", 2)), "c1 d0")]))
    assert [s.attributes["class"] for s in page.all("section")] == ["", "c1 d0"], "the colours of their curves"
    assert [s.attributes["aria-label"] for s in page.all("section")] == ["Answer of base", "Answer of <i>"]
    assert [s.text for s in page.all("small")] == ["4 tokens · stop", "1 token · stop", "2 tokens · sampling"]
    assert [len(page.all("div", css)) for css in ("written", "caret")] == [3, 1]


def test_a_problem_stands_in_the_place_of_the_answer() -> None:
    answers = [Answer("a", (Text("", 0),), problem="prompt is <empty>")]
    assert [p.text for p in Page(answers_html(answers)).all("p", "problem")] == ["prompt is <empty>"]
    assert answers_text(answers) == "a · prompt is <empty>"


@pytest.mark.parametrize(
    ("text", "base", "marked"),
    [
        ("the new ship sails", "the old ship sails", ["new"]),
        ("the old ship sails", "the old ship sails", []),
        ("a big, big ship", "a ship", ["big, big"]),
        ("quite another thing", "the old ship", ["quite another thing"]),
        ("ship", "the old ship sails", []),
        ("the  old\nship", "the old ship", []),
        ("the old ship\n sails on ", "the old ship sails", ["on"]),
        ("the <i>ship</i> &", "the ship", ["<i>ship</i> &"]),
        ("", "the", []),
        ("the", "", ["the"]),
    ],
)
def test_words_that_the_base_does_not_say(text: str, base: str, marked: list[str]) -> None:
    assert [text[start:end] for start, end in differing(text, base)] == marked
    html = answers_html(
        [Answer("base", (Text(base, 1, "stop"),), base=True), Answer("a", (Text(text, 1, "stop"),))], True
    )
    assert [mark.text for mark in Page(html).all("mark")] == marked
    assert Page(html).all("div", "written")[1].text == text


def test_words_that_come_again_and_again_are_compared_too() -> None:
    assert differing("sail " * 299 + "row", "sail " * 300) == [(5 * 299, 5 * 299 + 3)]


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("base", ["", EVIL, "another"])
def test_texts_of_users_and_models_are_text(base: str, by_token: bool) -> None:
    text = Text(EVIL, 2, EVIL, pieces(EVIL[:10], EVIL[10:]) if by_token else ())
    answers = [Answer(EVIL, (Text(base, 1, EVIL),), base=True), Answer(EVIL, (text,)), Answer(EVIL, (), problem=EVIL)]
    page = Page(answers_html(answers, diff=True))
    page.assert_harmless()
    assert not page.all("b")
    assert [e.text for e in page.all("div", "written")] == [base, EVIL]
    assert [e.text for e in page.all("h4")] == [EVIL] * 3
    assert [e.attributes["aria-label"] for e in page.all("section")] == [f"Answer of {EVIL}"] * 3
    assert [e.text for e in page.all("small")] == [f"1 token · {EVIL}", f"2 tokens · {EVIL}"]
    assert [e.text for e in page.all("p", "problem")] == [EVIL]
    assert all(repr(EVIL[10:]) in e.attributes["title"] for e in page.all("span", "lp2"))


def test_as_text_they_stand_below_each_other() -> None:
    answer = Answer("pirate", (Text("ahoy\n\x1b[2Jmatey", 3, "stop"), Text("a", 1)))
    assert answers_text([BASE, answer]).splitlines() == [
        "base · 4 tokens · stop",
        "the old ship sails",
        "pirate · 3 tokens · stop",
        "ahoy",
        "[2Jmatey",
        "pirate · 1 token · sampling",
        "a",
    ]


def test_marks_cut_across_tokens() -> None:
    text = Text("the new <ship> sails", 4, "stop", pieces("the ne", "w <sh", "", "ip> sails"))
    page = Page(answers_html([BASE, Answer("a", (text,))], diff=True))
    page.assert_harmless()
    assert page.all("div", "written")[1].text == text.text
    spans = page.all("span")
    assert [span.text for span in spans] == ["the ", "ne", "w <sh", "ip>", " sails"]
    assert [span.attributes["class"] for span in spans] == ["lp0", "lp0", "lp2", "lp4", "lp4"]
    assert "logprob -1.00" in spans[2].attributes["title"]
    assert "".join(mark.text for mark in page.all("mark")) == "new <ship>"


def test_what_cannot_be_shown_is_left_out() -> None:
    text = Text("a\x00b\nc", 3, "stop", pieces("a\x00", "b", "\nc"))
    page = Page(answers_html([BASE, Answer("a", (text,))], diff=True))
    assert page.all("div", "written")[1].text == "ab\nc"
    assert [span.text for span in page.all("span")] == ["a", "b", "\nc"]


def test_texts_that_grow_are_not_compared_yet() -> None:
    growing = Answer("a", (Text("another", 1),))
    assert not Page(answers_html([BASE, growing], diff=True)).all("mark")
    unfinished = Answer("base", (Text("the", 1),), base=True)
    assert not Page(answers_html([unfinished, Answer("a", (Text("x", 1, "stop"),))], diff=True)).all("mark")


def test_samples_are_compared_one_by_one() -> None:
    base = Answer("base", (Text("one", 1, "stop"), Text("two", 1, "stop")), base=True)
    answer = Answer("a", (Text("one", 1, "stop"), Text("two ships", 1, "stop"), Text("more", 1, "stop")))
    assert [mark.text for mark in Page(answers_html([base, answer], diff=True)).all("mark")] == ["ships"]
    assert not Page(answers_html([base, answer])).all("mark"), "only where it is asked for"
