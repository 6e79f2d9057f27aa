"""Tokens as shaded text: each where it belongs, all of them there, nothing of a user's is markup."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests.models.tiny import make_tokenizer
from tests.notebook.synthetic import decode, encode
from tests.notebook.views.html import Element, Page
from txlab.models.detokenizer import vocabulary_of
from txlab.notebook.views.tokens import GALLERY, Room, Shade, Strip, legend_html, stretches, strip_html, strip_text

EVIL = '<script>alert(\'&\')</script>"><b onclick="x">'


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def strip(text: str, values: list[float] | None = None, **more: object) -> Strip:
    shade = None if values is None else Shade(np.array(values), "weight", 1.0)
    return Strip(encode(text), decode, "a note", shade, **more)  # type: ignore[arg-type]


def tokens(html: str) -> list[Element]:
    return Page(html).all("b")


def text(html: str) -> str:
    (block,) = Page(html).all("div", "txlab-tokens")
    return block.text


@pytest.mark.parametrize(
    "said",
    [
        "quick brown fox",
        "香蕉 🍌👩‍👩‍👧 é ü",
        "a\n\n\tb  c\n",
        "\ufffd",
        "كتاب",
        "<|im_start|>user\nnaïve<|im_end|>\n",
        "",
    ],
)
def test_joined_the_tokens_are_the_decoded_text(tokenizer: PreTrainedTokenizerFast, said: str) -> None:
    ids = np.array(tokenizer.encode(said), np.int64)
    html = strip_html(Strip(ids, vocabulary_of(tokenizer).pieces, ""))
    assert len(tokens(html)) == len(ids)
    assert text(html) == said
    assert strip_text(Strip(ids, vocabulary_of(tokenizer).pieces, "note")) == f"note\n{said}"


def test_a_character_of_several_tokens_is_one_character(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = np.array(tokenizer.encode("🍌"), np.int64)
    assert len(ids) == 4
    shown = tokens(strip_html(Strip(ids, vocabulary_of(tokenizer).pieces, "")))
    assert [one.text for one in shown] == ["", "", "", "🍌"]
    assert [one.attributes["title"] for one in shown] == [f"token {i}" for i in ids]


def test_shading_follows_the_figures() -> None:
    none, zero, half, full, minus = tokens(strip_html(strip("abcde", [np.nan, 0.0, 0.5, 1.0, -1.0])))
    assert "style" not in none.attributes
    assert zero.attributes["style"] == "opacity:.6"
    strengths = [float(one.attributes["style"].rpartition(",")[2].rstrip(")")) for one in (half, full, minus)]
    assert 0 < strengths[0] < strengths[1] == strengths[2]
    hues = [one.attributes["style"].rpartition(",")[0] for one in (half, full, minus)]
    assert hues[0] == hues[1] != hues[2]
    assert [one.attributes.get("class") for one in (none, zero, half, full, minus)] == [None, None, "on", "on", "on"]


def test_titles_say_what_is_known() -> None:
    figures = {"weight": np.array([np.nan, 1.0]), "logprob": np.array([np.nan, -0.123456])}
    first, second = tokens(strip_html(strip("ab", figures=figures, targets={1: "'c' (1)"})))
    assert first.attributes["title"] == "token 97"
    assert second.attributes["title"] == "token 98 · weight 1 · logprob -0.1235 · to be predicted: 'c' (1)"
    assert second.attributes["class"] == "other"


def test_what_counts_is_in_brackets() -> None:
    assert strip_text(strip("abcdef", [np.nan, 0, 1, -1, 0, 1])) == "a note\nab⟦cd⟧e⟦f⟧"
    assert strip_text(strip("abcdef", [0, 1, 1, 1, 1, 1]), limit=3) == "a note\na⟦bc⟧ … 3 more tokens"


def test_texts_are_text() -> None:
    html = strip_html(strip(EVIL, targets={3: EVIL}, figures={EVIL: np.ones(len(EVIL))}))
    Page(html).assert_harmless()
    assert text(html) == EVIL
    assert EVIL in tokens(html)[3].attributes["title"]
    legend = Page(legend_html(Shade(np.ones(1), EVIL, 1.0)))
    legend.assert_harmless()
    assert legend.elements[0].text == f"{EVIL} 1"


def test_spaces_and_line_breaks_are_seen() -> None:
    page = Page(strip_html(strip("a b\tc\nd e")))
    assert [e.attributes["class"] for e in page.all("i")] == ["s", "t", "n", "s"]


def test_what_html_cannot_hold_is_replaced() -> None:
    shown = text(strip_html(strip("a\x00b\x1b[31m\ud800\x7f\ufffe")))
    assert shown == "a␀b␛[31m\ufffd\ufffd\ufffd"


@pytest.mark.parametrize("size", [0, 1, 200, 201, 5000])
def test_the_middle_of_a_long_stretch_is_folded(size: int) -> None:
    room = Room(stretch=200, keep=80, total=2048, unfolds=10_000)
    long = strip("x" * size + "yz", [0.0] * size + [1.0, 1.0])
    page = Page(strip_html(long, room))
    assert len(page.all("b")) == size + 2, "all of it is there"
    hidden = max(0, size - 160) if size > 200 else 0
    assert [e.text.partition("…")[2].partition("…")[0].strip() for e in page.all("details")] == (
        [f"{hidden:,} tokens"] if hidden else []
    )


def test_very_long_stretches_are_counted_only() -> None:
    page = Page(strip_html(strip("x" * 1000), GALLERY))
    assert len(page.all("b")) == 2 * GALLERY.keep
    assert [e.text for e in page.all("span", "gap")] == [f"… {1000 - 2 * GALLERY.keep:,} tokens …"]


@pytest.mark.parametrize("seed", range(5))
def test_stretches_cover_everything_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counted = np.repeat(rng.random(60) < 0.5, rng.integers(1, 120, 60))
    room = Room(stretch=50, keep=20, total=700)
    found = stretches(counted, room)
    assert [start for start, _, _ in found] == [0, *(end for _, end, _ in found[:-1])]
    assert found[-1][1] == len(counted)
    assert all(a[2] != b[2] for a, b in pairwise(found))
    shown = sum(end - start for start, end, seen in found if seen)
    assert room.total <= shown < room.total + room.stretch


def test_the_legend_has_what_there_is() -> None:
    assert legend_html(None) == ""
    shade = Shade(np.array([np.nan, 0.0, 0.3, np.inf]), "weight", 2.0)
    marks = [b.text for b in tokens(legend_html(shade))]
    looks = [b.attributes["style"] for b in tokens(strip_html(strip("ab", [0.0, 1.0])))]
    assert marks == ["0", "2"]
    assert [b.attributes["style"].partition(";")[0] for b in tokens(legend_html(shade))] == looks, "as the tokens are"
    marks = [b.text for b in tokens(legend_html(Shade(np.array([-0.1, 1.0, -np.inf]), "advantage", 1.5)))]
    assert marks == ["-1.5", "1.5"]
