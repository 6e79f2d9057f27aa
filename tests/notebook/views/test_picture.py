"""The board as SVG and as text: all there, escaped, bounded."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.notebook.synthetic import decode, sample, stream, train
from txlab.engine.bus import EventBus
from txlab.engine.events import EngineLoad, StateChanged, StepCompleted, StepsKept
from txlab.notebook.views.frame import BoardOptions, Frame, PinView, make_frame
from txlab.notebook.views.picture import render_svg
from txlab.notebook.views.text import render_text

EVIL = "<script>alert('&')</script>"


def frame(
    bus: EventBus, live: bool = True, options: BoardOptions | None = None, pins: tuple[PinView, ...] = ()
) -> Frame:
    return make_frame(bus.view(), decode, "base/model", "http://127.0.0.1:1", live, options, pins)


def texts(svg: str) -> str:
    """All text of a well-formed SVG."""
    root = ElementTree.fromstring(svg)
    return "\n".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("}text"))


def curves(svg: str) -> int:
    """How many lines the chart has."""
    paths = [node for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}path")]
    return sum("line" in path.get("class", "").split() and "spark" not in path.get("class", "") for path in paths)


@pytest.mark.parametrize("in_page", [True, False])
@pytest.mark.parametrize("adapters", [0, 1, 8, 64])
def test_any_number_of_adapters(adapters: int, in_page: bool) -> None:
    bus = EventBus()
    for i in range(adapters):
        train(bus, f"adapter-{i:02d}", steps=3)
    svg = render_svg(frame(bus), in_page)
    assert curves(svg) == adapters
    assert ("more adapters" in texts(svg)) == (adapters > 16)
    assert len(svg) < 100_000


def test_a_row_says_everything() -> None:
    bus = EventBus()
    train(bus, "pirate", steps=20)
    shown = texts(render_svg(frame(bus)))
    for expected in (
        "pirate",
        "16",
        "all",
        "20",
        "0.4863",
        "1e-4",
        "1.000",
        "2,000",
        "12 MB",
        "idle",
        "base/model",
        "http://127.0.0.1:1",
    ):
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
    assert len(render_svg(frame(bus))) < 20_000


def test_a_failure_is_spelled_out() -> None:
    bus = EventBus()
    train(bus, "big", steps=1)
    bus.publish(StateChanged("big", "failed", "out of memory: lower max_context"))
    assert "big: out of memory: lower max_context" in texts(render_svg(frame(bus)))


def test_a_mark_is_told() -> None:
    bus = EventBus()
    train(bus, "big", steps=1)
    bus.publish(StepCompleted("big", 2, 1e-3, 0.0, 100, ("zero gradient",)))
    assert "big: step 2: zero gradient" in texts(render_svg(frame(bus)))


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


def test_the_engine_says_how_busy_it_is() -> None:
    bus = EventBus()
    bus.publish(EngineLoad(queued=3, rows=8, max_rows=32, cache_bytes=10**8, max_cache_bytes=4 * 10**8))
    for shown in (texts(render_svg(frame(bus))), render_text(frame(bus))):
        for expected in ("queue", "8 of 32", "KV cache", "100 MB", "of 400 MB"):
            assert expected in shown


def test_the_chart_is_the_one_that_was_chosen() -> None:
    bus = EventBus()
    train(bus, "seen", steps=20)
    train(bus, "unseen", steps=20)
    options = BoardOptions("grad_norm", "tokens", smoothing=0.5, hidden=frozenset({"unseen"}))
    svg = render_svg(frame(bus, options=options))
    assert "gradient norm" in texts(svg)
    assert "trained tokens" in texts(svg)
    assert curves(svg) == 2  # the faint one and the smoothed one
    assert "<title>unseen</title>" not in svg


def test_pins_show_the_newest_texts() -> None:
    bus = EventBus()
    train(bus, "pirate", steps=2)
    pin = PinView(1, "Who are\nyou?", (("pirate", 20, "Arr & me"), ("pirate", 10, "I am"), ("base", 20, "A model")))
    shown = texts(render_svg(frame(bus, pins=(pin,))))
    for expected in ("Who are ↵ you?", "pirate", "step 20", "Arr & me", "step 10", "I am", "base", "A model"):
        assert expected in shown
    text = render_text(frame(bus, pins=(pin,)))
    assert "pinned: Who are ↵ you?\n  pirate, step 20: Arr & me\n  base, step 20: A model" in text


def test_the_text_fits_a_terminal() -> None:
    bus = EventBus()
    train(bus, "a name that is much longer than anybody needs it to be for an adapter", steps=2)
    bus.publish(StepsKept("a name that is much longer than anybody needs it to be for an adapter", (1, 2), 123_456_789))
    pin = PinView(1, "p" * 500, (("pirate", 2, "word " * 500),))
    assert max(map(len, render_text(frame(bus, pins=(pin,))).splitlines())) <= 122
