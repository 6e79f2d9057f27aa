"""One prompt to several adapters, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.notebook.parts import Parts, running, watch_batches
from tests.notebook.views.html import Page
from txlab.engine.requests import SampledSequence
from txlab.notebook.comparison import Comparison
from txlab.notebook.errors import TxlabError
from txlab.notebook.pins import Pins
from txlab.notebook.playground import Playing
from txlab.notebook.samples import Samples


@pytest.fixture(scope="module")
def parts(tiny_llama: Path) -> Iterator[Parts]:
    with running(tiny_llama) as parts:
        parts.adapter("run-1", "pirate").learn(5)
        parts.adapter("run-2", "poet").learn(5, rate=0.02)
        yield parts


@pytest.fixture
def lab(parts: Parts) -> Playing:
    part = Playing()
    part._bus, part._served, part._pins = parts.bus, parts.serving(), Pins(parts.bus, parts.engine)  # type: ignore
    return part


def said(name: str, *texts: str) -> Samples:
    drawn = tuple(SampledSequence(np.arange(3), np.zeros(3), "stop") for _ in texts)
    return Samples(name, "<p>", texts, drawn)


def test_everybody_answers_in_one_batch(lab: Playing, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = watch_batches(monkeypatch)
    found = lab.compare("one two", max_tokens=16, samples=2, stop=[])
    assert list(found) == ["base", "pirate", "poet"]
    assert {None, "run-1", "run-2"} in batches
    assert [len(samples) for samples in found.values()] == [2, 2, 2]
    assert len({tuple(samples) for samples in found.values()}) == 3
    assert found["pirate"].adapter == "pirate"


def test_some_by_name_in_their_order(lab: Playing) -> None:
    found = lab.compare("one two", ["poet", "base"], max_tokens=4)
    assert list(found) == ["poet", "base"]
    with pytest.raises(KeyError, match="'pirate' was not asked; asked were 'poet', 'base'"):
        found["pirate"]


def test_what_is_wrong_is_said(lab: Playing) -> None:
    with pytest.raises(TxlabError, match="no adapter 'nobody'"):
        lab.compare("x", ["nobody"])
    with pytest.raises(TxlabError, match="context of this model is 512"):
        lab.compare("x", max_tokens=600)
    with pytest.raises(TypeError, match="heat"):
        lab.compare("x", heat=2)  # type: ignore[call-arg]
    lab._served = None
    with pytest.raises(TxlabError, match="stopped"):
        lab.compare("x", ["base"])


def test_it_shows_what_the_base_does_not_say() -> None:
    found = Comparison("<p>", (said("base", "the ship sails"), said("a&b", "the <b>boat</b> sails")))
    page = Page(found._repr_html_())
    page.assert_harmless()
    assert [section.attributes["aria-label"] for section in page.all("section")] == [
        "comparison",
        "Answer of base",
        "Answer of a&b",
    ]
    assert [mark.text for mark in page.all("mark")] == ["<b>boat</b>"]
    assert [written.text for written in page.all("div", "written")] == ["the ship sails", "the <b>boat</b> sails"]
    assert [prompt.text for prompt in page.all("p", "prompt")] == ["<p>"]
    assert repr(found) == ("<p>\nbase · 3 tokens · stop\nthe ship sails\na&b · 3 tokens · stop\nthe <b>boat</b> sails")
