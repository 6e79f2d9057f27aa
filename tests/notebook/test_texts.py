"""Texts that a cell shows as they read."""

from __future__ import annotations

from txlab.notebook.texts import Text


def test_a_text_is_a_string_that_shows_itself() -> None:
    text = Text("one\n'two'")
    assert repr(text) == "one\n'two'"
    assert text == "one\n'two'"
    assert isinstance(text, str)
