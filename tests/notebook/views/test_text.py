"""How figures are written."""

from __future__ import annotations

import pytest

from tests.notebook.synthetic import view
from txlab.lora.state import LoraConfig
from txlab.notebook.views.text import clip, layers, memory, number, printable, rate, run_note, share, sparkline, whole


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.000"),
        (3.14159, "3.142"),
        (0.0376, "0.0376"),
        (123.456, "123.5"),
        (1e-5, "1.0e-05"),
        (float("nan"), "nan"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1500, "1.5 kB"), (78_000, "78 kB"), (2_340_000_000, "2.3 GB")]
)
def test_memory(count: int, text: str) -> None:
    assert memory(count) == text


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(range(1000), width=40)) == 40
    assert sparkline([2.0, 2.0]) == "▁▁"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1e-4, "1e-4"), (1.25e-5, "1.25e-5"), (0.01, "0.01"), (0.0, "0"), (3.0, "3"), (float("nan"), "nan")],
)
def test_learning_rates(value: float | None, text: str) -> None:
    assert rate(value) == text


def test_whole_numbers() -> None:
    assert (whole(None), whole(1234.5)) == ("–", "1,234")


def test_layers() -> None:
    assert layers(LoraConfig()) == "all"
    assert layers(LoraConfig(train_mlp=False)) == "attn+unembed"


def test_a_run_and_its_session_in_short() -> None:
    assert run_note(view(1).adapters[0]) == "train:0 · 5f0c9d3e"


def test_shares() -> None:
    assert (share(1, 4), share(5, 4), share(1, 0)) == (0.25, 1.0, 0.0)


def test_what_cannot_be_shown_is_left_out() -> None:
    assert printable("a\n\tb\x00\x1b\ud800") == "a\n\tb"


def test_long_texts_are_cut() -> None:
    assert clip("a\nbc", 10) == "a ↵ bc"
    assert clip("abcdef", 4) == "abc…"
