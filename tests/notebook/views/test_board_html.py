"""The board's regions: well-formed, escaped, small, and every control named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.notebook.synthetic import decode, encode, frame, view
from tests.notebook.views.html import Element, Page
from txlab.engine.bus import LabView, LiveSample
from txlab.engine.events import EngineLoad, SampleCompleted
from txlab.notebook.board import CHARACTERS_PER_SECOND
from txlab.notebook.views.board_html import REGIONS, render_regions
from txlab.notebook.views.frame import BoardOptions, Frame, PinView, make_frame
from txlab.notebook.views.text import render_text

EVIL = "<script>alert('&\")</script>"
CONTROLS = ("button", "select", "input", "form")


def page(shown: Frame) -> Page:
    return Page("".join(render_regions(shown).values()))


def region(shown: Frame, name: str) -> Page:
    return Page(render_regions(shown)[name])


def actions(html: Page) -> list[tuple[str, str]]:
    """(action, target) of every control."""
    return [(e.attributes["data-action"], e.target) for e in html.elements if "data-action" in e.attributes]


def with_adapter(**changes: object) -> Frame:
    """A board of one adapter that differs in these figures, with all that can be done to it."""
    made = view(1)
    adapter = replace(made.adapters[0], **changes)  # type: ignore[arg-type]
    options = BoardOptions(opened=frozenset({adapter.model_id}))
    return replace(frame(1), view=replace(made, adapters=(adapter,)), options=options)


def with_samples(*samples: SampleCompleted, streaming: tuple[LiveSample, ...] = (), **options: bool) -> Frame:
    made = LabView(1, view(1).adapters, samples, 0, 0.0, streaming=streaming)
    return make_frame(made, decode, "base/model", "http://x", options=BoardOptions(**options))


def sampled(text: str, logprob: float = -1.0, model_id: str | None = None) -> SampleCompleted:
    drawn = encode(text)
    return SampleCompleted(model_id, encode("prompt:"), drawn, np.full(len(drawn), logprob, np.float32), "stop", 0.5)


@pytest.mark.parametrize("adapters", [0, 1, 8, 64])
def test_any_number_of_adapters(adapters: int) -> None:
    shown = frame(adapters, 4096)
    regions = render_regions(shown)
    assert tuple(regions) == REGIONS
    html = page(shown)
    html.assert_harmless()
    assert (
        len([e for e in html.all("tr") if e.attributes.get("data-key") in {a.model_id for a in shown.view.adapters}])
        == adapters
    )
    assert len(regions["adapters"] + regions["chart"]) < CHARACTERS_PER_SECOND / 2


def test_the_style_never_changes() -> None:
    assert render_regions(frame(1))["style"] == render_regions(frame(8, live=False, notice="new"))["style"]


def test_every_adapter_has_its_controls() -> None:
    shown = with_adapter(kept_steps=(3, 7))
    (adapter,) = shown.view.adapters
    found = actions(region(shown, "adapters"))
    for action in ("hide", "pause", "stop", "save", "more", "fork", "rewind", "rename"):
        assert (action, adapter.model_id) in found
    closed = actions(region(replace(shown, options=BoardOptions()), "adapters"))
    assert set(found) - set(closed) == {(action, adapter.model_id) for action in ("fork", "rewind", "rename")}
    (steps,) = region(shown, "adapters").all("select")
    assert steps.text == "now73"


def test_a_paused_adapter_goes_on_and_one_that_is_gone_does_nothing() -> None:
    for state in ("paused", "stopped"):
        shown = {action for action, _ in actions(region(with_adapter(state=state), "adapters"))}
        assert "resume" in shown
        assert "pause" not in shown
    assert {action for action, _ in actions(region(with_adapter(state="unloaded"), "adapters"))} == {"hide"}


def test_without_kept_steps_there_is_nothing_to_rewind_to() -> None:
    def rewind(shown: Frame) -> Element:
        (button,) = [e for e in region(shown, "adapters").elements if e.attributes.get("data-action") == "rewind"]
        return button

    assert "disabled" in rewind(with_adapter()).attributes
    assert "disabled" not in rewind(with_adapter(kept_steps=(1,))).attributes


def test_settings_are_what_was_chosen() -> None:
    chosen = BoardOptions("reward", "tokens", 0.6, log=True, logprobs=True)
    shown = frame(2, options=chosen)
    selected = [e.attributes["value"] for e in region(shown, "settings").all("option") if "selected" in e.attributes]
    assert selected == ["reward", "tokens", "log"]
    (slider,) = [e for e in region(shown, "settings").all("input") if e.attributes["type"] == "range"]
    assert slider.attributes["value"] == "0.6"
    (shade,) = [e for e in region(shown, "samples").elements if e.attributes.get("data-action") == "logprobs"]
    assert shade.attributes["aria-pressed"] == "true"


def test_every_setting_can_be_changed_by_what_the_page_sends() -> None:
    for select in ("metric", "x", "log"):
        html = render_regions(frame(1))["settings"].split(f'data-action="{select}"')[1].split("</select>")[0]
        values = [e.attributes["value"] for e in Page("<p" + html + "</p>").all("option")]
        assert len({BoardOptions().changed(select, value) for value in values}) == len(values)


def test_the_metrics_are_those_of_all_adapters_the_loss_first() -> None:
    names = [e.attributes["value"] for e in region(frame(2), "settings").all("option")]
    assert names[:4] == ["loss", "grad_norm", "learning_rate", "reward"]


def test_every_control_has_a_name() -> None:
    shown = replace(frame(2), pins=(PinView(4, "why?", ()),))
    for name, html in render_regions(shown).items():
        for element in Page(html).elements:
            if element.tag in CONTROLS and element.tag != "form":
                assert _labelled(element, html), (name, element)


def _labelled(element: Element, html: str) -> bool:
    """By an aria-label, a text of its own, or a label around it."""
    if element.attributes.get("aria-label") or (element.tag == "button" and element.text.strip()):
        return True
    action = element.attributes.get("data-action", "?")
    return any(f'data-action="{action}"' in part.split("</label>")[0] for part in html.split("<label")[1:])


def test_the_table_is_one_to_assistive_technology() -> None:
    html = region(with_adapter(message="out of memory"), "adapters")
    assert {e.attributes.get("scope") for e in html.all("th")} == {"col", "row"}
    assert len(html.all("caption")) == 1
    heads = len([e for e in html.all("th") if e.attributes["scope"] == "col"])
    assert {e.attributes["colspan"] for e in html.all("td") if "colspan" in e.attributes} == {str(heads)}
    assert len([*html.all("td")]) == (heads - 1) + 2, "the adapter's forms and its failure have a row each"


def test_texts_of_users_are_escaped_everywhere() -> None:
    made = view(1)
    adapter = replace(made.adapters[0], model_id=EVIL, name=EVIL, state="failed", message=EVIL)
    adapter = replace(adapter, curves={EVIL: adapter.curves["loss"], "loss": adapter.curves["loss"]})
    drawn = encode(EVIL)
    sample = SampleCompleted(EVIL, encode(EVIL), drawn, np.full(len(drawn), -3.0, np.float32), EVIL, 0.5)
    for logprobs in (False, True):
        options = BoardOptions(metric=EVIL, logprobs=logprobs)
        shown = make_frame(
            replace(made, adapters=(adapter,), samples=(sample,)),
            decode,
            EVIL,
            EVIL,
            options=options,
            pins=(PinView(1, EVIL, ((EVIL, 1, EVIL), (EVIL, 0, "older"))),),
            notice=EVIL,
        )
        html = page(shown)
        html.assert_harmless()
        assert EVIL in html.all("h3")[0].text
        assert (EVIL, EVIL) not in actions(html)
        assert ("pause", EVIL) in actions(html)


def test_control_characters_are_left_out() -> None:
    samples = render_regions(with_samples(sampled("a\x00b\x1b[31m\ud800c")))["samples"]
    assert all(char.isprintable() for char in samples)


def test_a_failure_is_spelled_out() -> None:
    shown = with_adapter(state="failed", message="out of memory: lower max_context")
    assert "out of memory: lower max_context" in [e.text for e in region(shown, "adapters").all("td")]


def test_the_newest_mark_of_an_adapter_is_told() -> None:
    shown = with_adapter(marks=((3, "an older one"), (1200, "zero <gradient>")))
    cells = [e.text for e in region(shown, "adapters").all("td")]
    assert "step 1,200: zero <gradient>" in cells
    assert not any("an older one" in cell for cell in cells)
    assert "step 1,200: zero <gradient>" in render_text(shown)


def test_what_is_sampled_comes_first_with_a_caret() -> None:
    tokens = encode(" being written")
    live = LiveSample(None, encode("p"), tokens, np.zeros(len(tokens), np.float32), len(tokens))
    texts = region(with_samples(sampled("done"), streaming=(live,)), "samples").all("div", "written")
    assert [("caret" in text.attributes["class"], text.text) for text in texts] == [
        (True, "p being written"),
        (False, "prompt:done"),
    ]


def test_tokens_are_shaded_on_request() -> None:
    plain = region(with_samples(sampled("abc", -4.0)), "samples")
    shaded = region(with_samples(sampled("abc", -4.0), logprobs=True), "samples")
    assert not plain.all("span", "lp4")
    assert [e.text for e in shaded.all("div", "written")] == ["prompt:abc"]
    assert "".join(e.text for e in shaded.all("span", "lp4") if "title" in e.attributes) == "abc"


def test_samples_and_pins_have_the_colour_of_their_adapter() -> None:
    model_id = view(2).adapters[1].model_id
    made = replace(view(2), samples=(sampled("x", model_id=model_id),))
    pins = (PinView(1, "p", (("adapter-01", 3, "text"),)),)
    shown = make_frame(made, decode, "m", "u", pins=pins)
    assert region(shown, "samples").all("b", "c1")
    assert region(shown, "pins").all("th", "c1")


def test_pins_show_what_changed_from_step_to_step() -> None:
    texts = (
        ("a", 20, "a red fox"),
        ("b", 20, "same"),
        ("a", 10, "a blue fox"),
        ("b", 10, "same"),
        ("a", 5, "a blue fox"),
    )
    html = region(frame(1, pins=(PinView(7, "colour?", texts),)), "pins")
    assert [e.text for e in html.all("mark")] == ["red"]
    assert [e.text for e in html.all("div", "written")] == ["a red fox", "a blue fox", "a blue fox", "same", "same"]
    assert ("unpin", "7") in actions(html)


def test_without_pins_there_is_no_region_of_them() -> None:
    assert render_regions(frame(1))["pins"] == ""


def test_the_engine_says_how_busy_it_is() -> None:
    load = EngineLoad(
        queued=3,
        rows=8,
        max_rows=32,
        waiting_rows=5,
        cache_bytes=10**8,
        max_cache_bytes=4 * 10**8,
        device_bytes=2 * 10**9,
    )
    shown = frame(0, view=view(0, load=load, trained_tokens=75, trained_positions=100))
    text = " ".join(e.text for e in region(shown, "engine").all("div", "tile"))
    for expected in ("3waiting", "8 of 325 waiting", "25%", "34.5 s", "100 MBof 400 MB", "2.0 GB"):
        assert expected in text
    bars = [e.attributes["style"] for e in region(shown, "engine").elements if "style" in e.attributes]
    assert bars == ["width:25%", "width:25%", "width:25%"]


def test_the_head_says_what_is_served_and_what_came_of_an_action() -> None:
    shown = frame(2, notice="Saved.")
    (notice,) = [e for e in region(shown, "head").elements if e.attributes.get("role") == "status"]
    assert notice.text == "Saved."
    assert notice.attributes["aria-live"] == "polite"
    assert "base/model" in region(shown, "head").elements[0].text
    assert "live" in region(shown, "head").elements[0].text
    assert "live" not in region(replace(shown, live=False), "head").elements[0].text


def test_a_hidden_curve_is_not_drawn_and_can_be_shown_again() -> None:
    hidden = frozenset({view(2).adapters[0].model_id})
    shown = frame(2, options=BoardOptions(hidden=hidden))
    titles = [e.text for e in region(shown, "chart").all("path", "line")]
    assert titles == ["adapter-01"]
    marks = region(shown, "adapters").all("button", "swatch")
    assert [mark.attributes["aria-pressed"] for mark in marks] == ["false", "true"]
