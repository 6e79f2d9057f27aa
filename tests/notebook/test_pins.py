"""Prompts that are sampled again while adapters train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.notebook.parts import SECONDS, Parts, running
from txlab.engine.events import (
    AdapterRenamed,
    AdapterRewound,
    SampleCompleted,
    SampleProgress,
    StateChanged,
    StepCompleted,
)
from txlab.engine.requests import DropSnapshot, UnloadAdapter
from txlab.notebook import pins as pins_module
from txlab.notebook.drafts import Draft, Source, make_ask, to_request
from txlab.notebook.drafts import wait_for as wait_for_drafts
from txlab.notebook.errors import TxlabError
from txlab.notebook.pins import Pins
from txlab.notebook.views.frame import PinView


@pytest.fixture(scope="module")
def parts(tiny_llama: Path) -> Iterator[Parts]:
    with running(tiny_llama) as parts:
        yield parts


@pytest.fixture
def pins(parts: Parts) -> Iterator[Pins]:
    pins = Pins(parts.bus, parts.engine)
    yield pins
    for pin in pins.view():
        pins.remove(pin.number)
    pins.close()


def wait_for(parts: Parts, pins: Pins, is_so: Callable[[tuple[PinView, ...]], bool]) -> tuple[PinView, ...]:
    """The pins once they are as they should be: results wake the bus, so each is seen."""
    seen = -1
    while not is_so(view := pins.view()):
        before, seen = seen, parts.bus.wait(seen, SECONDS)
        assert seen > before, f"nothing came any more: {view}"
    return view


def steps(view: tuple[PinView, ...], name: str) -> list[int]:
    return [step for pin in view for who, step, _ in pin.texts if who == name]


def wait_for_first(parts: Parts, pins: Pins, name: str) -> None:
    """Until an adapter has answered once: whoever has not is not asked again."""
    wait_for(parts, pins, lambda view: bool(steps(view, name)))


def test_a_pin_is_sampled_at_once_and_every_few_steps(parts: Parts, pins: Pins) -> None:
    pupil = parts.adapter("a", "apprentice")
    number = pins.add("one two", ["apprentice"], every=2, max_tokens=8)
    wait_for_first(parts, pins, "apprentice")
    for step in (2, 4):
        pupil.learn(2)
        wait_for(parts, pins, lambda view, step=step: step in steps(view, "apprentice"))
    pupil.learn(1)
    (pin,) = wait_for(parts, pins, lambda view: len(view[0].texts) >= 3)
    assert (pin.number, pin.prompt) == (number, "one two")
    assert steps((pin,), "apprentice") == [4, 2, 0], "newest first, none of step 5"
    assert len({text for _, _, text in pin.texts}) > 1, "it has learned meanwhile"


def test_texts_are_of_the_weights_of_their_step(parts: Parts, pins: Pins) -> None:
    """Steps go on while it samples; seen later, each is what the weights of the step say greedily."""
    one, other = parts.adapter("b1"), parts.adapter("b2")
    pins.add("one two", ["b1"], every=3, max_tokens=4)
    wait_for_first(parts, pins, "b1")
    one.learn(10)
    view = wait_for(parts, pins, lambda view: any(step > 0 for step in steps(view, "b1")))
    found = {step: text for _, step, text in view[0].texts}
    last = max(found)
    other.learn(last)  # it is equal to the first
    later = pins.add("one two", ["b2"], max_tokens=4)
    texts = {pin.number: pin.texts for pin in wait_for(parts, pins, lambda view: bool(view[1].texts))}
    assert texts[later][0][2] == found[last]


def test_the_base_answers_once_and_later_adapters_join(parts: Parts, pins: Pins) -> None:
    pins.add("one two", every=1, max_tokens=2)
    pupil = parts.adapter("c")
    wait_for(parts, pins, lambda view: 0 in steps(view, "c"))
    pupil.learn(1)
    view = wait_for(parts, pins, lambda view: 1 in steps(view, "c"))
    assert steps(view, "base") == [0]
    parts.bus.publish(AdapterRenamed("c", "captain"))
    assert steps(pins.view(), "captain") == [1, 0]
    parts.engine.ask(UnloadAdapter("c")).result(SECONDS)
    assert steps(pins.view(), "captain") == []


class Slow:
    """An engine that keeps whoever asks waiting."""

    def __init__(self, parts: Parts):
        self._parts, self.samples = parts, 0

    def __getattr__(self, name: str):
        return getattr(self._parts.engine, name)

    def ask(self, request: object):
        self.samples += type(request).__name__ == "Sample"
        return Future()  # never done


def test_they_are_none_of_the_latest_samples(parts: Parts, pins: Pins) -> None:
    """A board has a place of their own for them: there they would crowd out the user's."""
    parts.adapter("h").learn(1)
    own = to_request(parts.engine, make_ask("the user's", max_tokens=2, stop=[]))
    wait_for_drafts(parts.engine, [Draft(parts.engine, own, Source("h", "h"))])
    seen: list[object] = []
    unlisten = parts.bus.listen(seen.append)
    pins.add("one two", ["h", "base"], max_tokens=40, stop=[])
    wait_for(parts, pins, lambda view: len(view[0].texts) == 2)
    unlisten()
    assert not [event for event in seen if isinstance(event, SampleProgress | SampleCompleted)]
    assert parts.bus.view().samples[0].prompt.tolist() == own.prompt.tolist()
    assert StateChanged("h", "sampling") in seen, "who samples is told all the same"


def test_slow_sampling_leaves_steps_out(parts: Parts) -> None:
    parts.adapter("d")
    engine = Slow(parts)
    pins = Pins(parts.bus, engine)  # type: ignore[arg-type]
    pins.add("one two", ["d"], every=1)
    for step in range(1, 50):
        parts.bus.publish(StepCompleted("d", step, 0.1, 1.0, 0))
    pins.close()
    assert engine.samples == 1


def test_after_a_rewind_it_is_asked_anew(parts: Parts) -> None:
    """What it is saying is of weights that were taken back."""
    parts.adapter("i")
    engine = Slow(parts)
    pins = Pins(parts.bus, engine)  # type: ignore[arg-type]
    pins.add("one two", ["i"], every=1)
    parts.bus.publish(AdapterRewound("i", 0))
    parts.bus.publish(StepCompleted("i", 1, 0.1, 1.0, 0))
    pins.close()
    assert engine.samples == 2


def test_left_to_itself_it_is_greedy(pins: Pins) -> None:
    pins.add("one two", ["base"])
    (pin,) = pins._pins.values()
    assert (pin.request.params.temperature, pin.request.params.max_tokens) == (0.0, 48)


def test_history_is_bounded(parts: Parts, pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    pupil = parts.adapter("e")
    number = pins.add("one two", ["e"], every=1, max_tokens=1)
    wait_for_first(parts, pins, "e")
    for step in range(1, 37):
        pupil.learn(1)
        wait_for(parts, pins, lambda view, step=step: step in steps(view, "e"))
    assert steps(pins.view(), "e") == list(range(36, 4, -1))
    monkeypatch.setattr(pins_module, "MAX_PINS", 1)
    with pytest.raises(TxlabError, match="1 pins already"):
        pins.add("three")
    pins.remove(number)


def test_a_rewind_forgets_what_came_later(parts: Parts, pins: Pins) -> None:
    pupil = parts.adapter("f")
    pins.add("one two", ["f"], every=1, max_tokens=2)
    wait_for_first(parts, pins, "f")
    for step in range(1, 4):
        pupil.learn(1)
        wait_for(parts, pins, lambda view, step=step: step in steps(view, "f"))
    parts.bus.publish(AdapterRewound("f", 1))
    assert steps(pins.view(), "f") == [1, 0]


def test_closing_ends_it_and_keeps_what_was_said(parts: Parts, pins: Pins) -> None:
    pupil = parts.adapter("g")
    pins.add("one two", ["g"], every=1, max_tokens=2)
    before = wait_for(parts, pins, lambda view: 0 in steps(view, "g"))
    pins.close()
    pupil.learn(2)
    parts.engine.ask(DropSnapshot("nothing")).result(SECONDS)
    assert pins.view() == before
    assert pins._engine is None, "the device memory is free to go"
    with pytest.raises(TxlabError, match="stopped"):
        pins.add("three", ["base"])


def test_what_is_wrong_is_said(parts: Parts, pins: Pins) -> None:
    with pytest.raises(TxlabError, match="every is 0"):
        pins.add("x", every=0)
    with pytest.raises(TxlabError, match="no adapter 'nobody'"):
        pins.add("x", ["nobody"])
    with pytest.raises(TxlabError, match="max_tokens"):
        pins.add("x", max_tokens=0)
    with pytest.raises(TxlabError, match=r"no pin 7\. Pins: none"):
        pins.remove(7)
    assert "no pins yet" in repr(pins)


def test_they_describe_themselves(parts: Parts, pins: Pins) -> None:
    number = pins.add("one\ntwo", ["base"], max_tokens=2)
    wait_for(parts, pins, lambda view: bool(view[0].texts))
    assert repr(pins).startswith(f"{number} · one ↵ two\n    base, step 0: ")
