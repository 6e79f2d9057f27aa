"""The board as SVG and as text: all there, escaped, bounded."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.notebook.synthetic import decode, sample, stream, train
from txlab.engine.bus import EventBus
from txlab.engine.events import StateChanged
from txlab.notebook.views.frame import Frame, make_frame
from txlab.notebook.views.picture import render_svg, wrap
from txlab.notebook.views.text import memory, number, render_text, sparkline

EVIL = "<script>alert('&')</script>"


def frame(bus: EventBus, live: bool = True) -> Frame:
    return make_frame(bus.view(), decode, "base/model", "http://127.0.0.1:1", live)


def texts(svg: str) -> str:
    """All text of a well-formed SVG."""
    root = ElementTree.fromstring(svg)
    return "\n".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("}text"))


def lines(svg: str) -> int:
    return sum(node.tag.endswith("}polyline") for node in ElementTree.fromstring(svg).iter())


@pytest.mark.parametrize("in_page", [True, False])
@pytest.mark.parametrize("adapters", [0, 1, 8, 64])
def test_any_number_of_adapters(adapters: int, in_page: bool) -> None:
    bus = EventBus()
    for i in range(adapters):
        train(bus, f"adapter-{i:02d}", steps=3)
    svg = render_svg(frame(bus), in_page)
    assert lines(svg) == adapters
    assert ("more adapters" in texts(svg)) == (adapters > 16)
    assert len(svg) < 100_000


def test_a_row_says_everything() -> None:
    bus = EventBus()
    train(bus, "pirate", steps=20)
    shown = texts(render_svg(frame(bus)))
    for expected in ("pirate", "16", "20", "0.4863", "2,000", "12 MB", "idle", "base/model", "http://127.0.0.1:1"):
        assert expected in shown
        assert expected in render_text(frame(bus))


def test_texts_of_users_are_escaped_everywhere() -> None:
    bus = EventBus()
    train(bus, EVIL, steps=2)
    sample(bus, EVIL, EVIL, EVIL, stop=EVIL)
    bus.publish(StateChanged(EVIL, "failed", EVIL))
    for in_page in (True, False):
        svg = render_svg(frame(bus), in_page)
        assert "<script" not in svg
        assert texts(svg).count("alert") >= 4


def test_control_characters_do_not_break_the_xml() -> None:
    bus = EventBus()
    sample(bus, "a\x00b\x1b[31m\ud800", "c\n\td\x7f")
    assert "c ↵ d" in texts(render_svg(frame(bus)))


def test_a_sample_tells_prompt_from_continuation() -> None:
    bus = EventBus()
    sample(bus, "English: pie\nPig Latin:", " ie-pay\n", stop="length")
    svg = render_svg(frame(bus))
    spans = [node for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}tspan")]
    assert [(s.get("class"), s.text) for s in spans] == [
        ("mute", "English: pie ↵ Pig Latin: "),
        ("drawn", "ie-pay ↵"),
    ]
    assert "length" in texts(svg)


def test_what_is_being_sampled_comes_first_and_grows() -> None:
    bus = EventBus()
    sample(bus, "done:", "finished")
    stream(bus, "English: pie", " ie", number=1)
    stream(bus, "older?", "newer!", number=2)
    stream(bus, "English: pie", "-pay", number=1)
    shown = texts(render_svg(frame(bus)))
    assert [shown.index(part) for part in ("newer!", "ie-pay▍", "finished")] == sorted(
        shown.index(part) for part in ("newer!", "ie-pay▍", "finished")
    )
    assert "7 tokens  ·  sampling" in shown
    assert "base [7 tokens  ·  sampling]  English: pie → ie-pay" in render_text(frame(bus))


def test_of_a_long_text_that_grows_the_end_is_shown() -> None:
    bus = EventBus()
    stream(bus, "prompt", "first " + "word " * 500 + "last")
    shown = texts(render_svg(frame(bus)))
    assert "last▍" in shown
    assert "first" not in shown


def test_the_last_picture_has_nothing_that_grows() -> None:
    bus = EventBus()
    stream(bus, "prompt", "never ended")
    sample(bus, "done:", "finished")
    shown = texts(render_svg(frame(bus, live=False)))
    assert "never ended" not in shown
    assert "finished" in shown


@pytest.mark.parametrize("text", ["", "\x00"])
def test_a_sequence_without_any_text_yet(text: str) -> None:
    bus = EventBus()
    stream(bus, "", text)
    assert "▍" in texts(render_svg(frame(bus)))


def test_long_samples_are_cut() -> None:
    bus = EventBus()
    sample(bus, "p" * 10_000, "word " * 10_000)
    assert len(render_svg(frame(bus))) < 10_000


def test_a_failure_is_spelled_out() -> None:
    bus = EventBus()
    train(bus, "big", steps=1)
    bus.publish(StateChanged("big", "failed", "out of memory: lower max_context"))
    assert "big: out of memory: lower max_context" in texts(render_svg(frame(bus)))


def test_only_a_live_board_says_so() -> None:
    assert "live" in texts(render_svg(frame(EventBus(), live=True)))
    assert "live" not in texts(render_svg(frame(EventBus(), live=False)))


def test_busy_adapters_are_shown_before_newer_idle_ones() -> None:
    bus = EventBus()
    for i in range(40):
        train(bus, f"adapter-{i:02d}", steps=1)
    bus.publish(StateChanged("adapter-03", "training"))
    text = render_text(frame(bus))
    assert "adapter-03" in text
    assert "adapter-04" not in text
    assert "adapter-39" in text


def test_wrap_breaks_at_spaces_and_counts_wide_characters() -> None:
    assert [("aa bb cc"[s:e]) for s, e in wrap("aa bb cc", 5)] == ["aa bb", "cc"]
    assert [("abcdefgh"[s:e]) for s, e in wrap("abcdefgh", 3)] == ["abc", "def", "gh"]
    assert wrap("日本語", 4) == [(0, 2), (2, 3)]
    assert wrap("", 4) == []


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
