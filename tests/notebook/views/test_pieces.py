"""Texts by token: nothing is lost, and what was unlikely shows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.notebook.views.html import Page
from txlab.notebook.views.pieces import split_text, token_html


def decode_bytes(tokens: Sequence[int]) -> str:
    """A token is a byte, as in a byte-level tokenizer at its finest."""
    return bytes(tokens).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["", "plain", "naïve 日本語 🦜!", "�", "🦜🦜", "tab\tand\nline"])
def test_parts_join_to_the_text(text: str) -> None:
    tokens = list(text.encode())
    parts = split_text(tokens, text, decode_bytes)
    assert len(parts) == len(tokens)
    assert "".join(parts) == text


def test_a_character_belongs_to_its_last_token() -> None:
    assert split_text(list("aé".encode()), "aé", decode_bytes) == ["a", "", "é"]


@pytest.mark.parametrize("tokens", [[0xFF], [0x61, 0xE6, 0x97], [0xE6, 0x61], [0xF0, 0x9F, 0x61, 0xC3, 0xA9]])
def test_broken_bytes_lose_nothing(tokens: list[int]) -> None:
    text = decode_bytes(tokens)
    parts = split_text(tokens, text, decode_bytes)
    assert len(parts) == len(tokens)
    assert "".join(parts) == text


def test_a_tokenizer_that_swallows_the_first_space() -> None:
    words = ["▁the", "▁cat", "s"]

    def decode(tokens: Sequence[int]) -> str:
        return "".join(words[token] for token in tokens).replace("▁", " ").removeprefix(" ")

    assert split_text([0, 1, 2], "the cats", decode) == ["the", " cat", "s"]


@pytest.mark.parametrize(("logprob", "level"), [(0.0, 0), (-0.2, 1), (-1.0, 2), (-2.0, 3), (-5.0, 4)])
def test_the_less_likely_the_stronger(logprob: float, level: int) -> None:
    (span,) = Page(token_html("<b>", logprob)).elements
    assert span.attributes["class"] == f"lp{level}"
    assert span.text == "<b>"
    assert f"{logprob:.2f}" in span.attributes["title"]
