"""Lines of monospaced cells."""

from __future__ import annotations

from txlab.notebook.views.lines import wrap


def test_wrap_breaks_at_spaces_and_counts_wide_characters() -> None:
    assert [("aa bb cc"[s:e]) for s, e in wrap("aa bb cc", 5)] == ["aa bb", "cc"]
    assert [("abcdefgh"[s:e]) for s, e in wrap("abcdefgh", 3)] == ["abc", "def", "gh"]
    assert wrap("日本語", 4) == [(0, 2), (2, 3)]
    assert wrap("", 4) == []
