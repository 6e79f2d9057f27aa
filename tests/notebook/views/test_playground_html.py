"""The playground's HTML: well-formed, escaped, and every control has a name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.notebook.views.html import Page
from txlab.notebook.views.answers import Answer, Text
from txlab.notebook.views.palette import STATES
from txlab.notebook.views.playground_html import (
    DEFAULTS,
    REGIONS,
    Choice,
    Scene,
    Turn,
    render_picture,
    render_regions,
    render_text,
)

EVIL = '<script>alert("x")</script>'
ANSWERS = (
    Answer("base", (Text(f"the {EVIL}", 3, "stop"),), base=True),
    Answer(EVIL, (Text("the boat", 2, "length", (("the", -0.1), (" boat", -4.0))),), "c0 d0"),
)
FIRST = Turn(1, f"say {EVIL}", "temperature 1", ANSWERS)
SECOND = Turn(2, "second", "temperature 0.5", ANSWERS, live=True)
SCENE = Scene(
    choices=(Choice("base", "base"), Choice('id"1', EVIL, "c0 d0")),
    form=3,
    fields={**DEFAULTS, "prompt": f"</textarea>{EVIL}", "stop": '"', "layout": "chat"},
    chosen=frozenset({'id"1'}),
    shown=SECOND,
    earlier=(SECOND, FIRST),
)


def pages(scene: Scene) -> dict[str, Page]:
    return {name: Page(html) for name, html in render_regions(scene).items()}


def test_regions_are_well_formed_and_escaped() -> None:
    found = pages(SCENE)
    assert tuple(found) == REGIONS
    for page in found.values():
        assert not page.all("script")
        assert not [name for e in page.elements for name in e.attributes if name.startswith("on")]
    assert found["ask"].all("textarea")[0].text == f"</textarea>{EVIL}"
    assert [label.text for label in found["ask"].all("label") if label.attributes.get("data-key")] == ["base", EVIL]


def test_no_class_is_that_of_a_state() -> None:
    """The same style sheet colours the states of adapters."""
    classes = {
        one for page in pages(SCENE).values() for e in page.elements for one in e.attributes.get("class", "").split()
    }
    assert not classes & {*STATES}


@pytest.mark.parametrize("region", REGIONS)
def test_every_control_has_a_name(region: str) -> None:
    """A field lies in a label with words; a button has words of its own."""
    html = render_regions(SCENE)[region]
    labelled = [Page(f"<label{part.split('</label>')[0]}</label>") for part in html.split("<label")[1:]]
    for tag in ("input", "select", "textarea"):
        inside = sum(len(page.all(tag)) for page in labelled if page.all("label")[0].text.strip())
        assert inside == len(Page(html).all(tag))
    assert all(button.text.strip() for button in Page(html).all("button"))


def test_the_form_says_what_is_chosen() -> None:
    page = pages(SCENE)["ask"]
    form = page.all("form")[0].attributes
    assert (form["data-action"], form["data-key"], "data-form" in form) == ("generate", "ask-3", True)
    boxes = {
        box.attributes["value"]: "checked" in box.attributes for box in page.all("input") if "checkbox" in str(box)
    }
    assert boxes == {"base": False, 'id"1': True}
    assert [option.attributes["value"] for option in page.all("option") if "selected" in option.attributes] == ["chat"]
    named = {e.attributes["name"] for e in page.elements if "name" in e.attributes}
    assert named == {*DEFAULTS, "sources"}


def test_what_is_sampled_can_be_stopped() -> None:
    def actions(scene: Scene) -> list[str]:
        return [e.attributes["data-action"] for e in pages(scene)["answers"].elements if "data-action" in e.attributes]

    assert actions(SCENE) == ["stop", "diff", "logprobs"]
    assert actions(replace(SCENE, shown=FIRST)) == ["diff", "logprobs"]
    status = [e.text for e in pages(SCENE)["answers"].elements if e.attributes.get("role") == "status"]
    assert status == ["Sampling: 5 tokens so far"]


def test_shades_are_explained_where_there_are_any() -> None:
    def legends(logprobs: bool) -> list[str]:
        return [e.text for e in pages(replace(SCENE, logprobs=logprobs))["answers"].all("span", "legend")]

    assert legends(False) == []
    assert legends(True) == ["likely< 90%< 50%< 20%< 5%"]


def test_earlier_prompts_bring_themselves_back() -> None:
    buttons = pages(SCENE)["history"].all("button")
    assert [(b.attributes["data-action"], b.attributes["data-target"]) for b in buttons] == [
        ("recall", "2"),
        ("recall", "1"),
    ]
    assert ["aria-current" in b.attributes for b in buttons] == [True, False]
    assert EVIL in buttons[1].text


def test_the_picture_has_every_answer_and_no_control() -> None:
    page = Page(render_picture(SCENE))
    page.assert_harmless()
    assert not [e for e in page.elements if e.tag in ("button", "input", "form", "textarea")]
    assert [p.text for p in page.all("p", "prompt")] == ["second", f"say {EVIL}"]
    assert len(page.all("div", "written")) == 4
    assert page.all("summary")[0].text == "Earlier prompts (1)"
    assert render_text(SCENE) == f"second\nbase · 3 tokens · stop\nthe {EVIL}\n{EVIL} · 2 tokens · length\nthe boat"


def test_before_the_first_prompt() -> None:
    assert "Nothing was asked yet" in render_picture(Scene())
    assert "nothing was asked yet" in render_text(Scene())
    assert pages(Scene())["history"].elements == []
