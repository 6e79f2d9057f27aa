"""What was drawn is drawn again only where something changed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest

from txlab.notebook.views.remember import remembered


class Thing:
    """Told apart by identity."""


@pytest.fixture
def drawn() -> list[tuple[Thing, str]]:
    return []


@pytest.fixture
def draw(drawn: list[tuple[Thing, str]]) -> Callable[[Thing, str], str]:
    @remembered
    def draw(thing: Thing, color: str) -> str:
        drawn.append((thing, color))
        return f"{len(drawn)}: {color}"

    return draw


def test_the_same_is_drawn_once(draw: Callable[[Thing, str], str], drawn: list[tuple[Thing, str]]) -> None:
    one, other = Thing(), Thing()
    assert [draw(one, "red"), draw(one, "red"), draw(other, "red"), draw(one, "red")] == [
        "1: red",
        "1: red",
        "2: red",
        "1: red",
    ]
    assert drawn == [(one, "red"), (other, "red")]


def test_other_arguments_are_drawn_anew(draw: Callable[[Thing, str], str]) -> None:
    one = Thing()
    assert [draw(one, "red"), draw(one, "blue"), draw(one, "red")] == ["1: red", "2: blue", "3: red"]


def test_what_nobody_holds_is_forgotten() -> None:
    class Answer:
        pass

    draw = remembered(lambda thing: Answer())
    thing = Thing()
    answer = weakref.ref(draw(thing))
    gc.collect()
    assert answer() is not None
    del thing
    gc.collect()
    assert answer() is None
