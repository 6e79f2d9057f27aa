"""The board's thread: what it draws when, and that it never harms who publishes."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.notebook.synthetic import decode, train
from txlab.engine.bus import EventBus
from txlab.notebook import board as board_module
from txlab.notebook.board import Board


class Display:
    """Stands for a notebook's display: keeps the bundles and says when one came."""

    def __init__(self) -> None:
        self.bundles: list[dict[str, str]] = []
        self.drawn = threading.Condition()

    def __call__(self, bundle: dict[str, str], **_: Any) -> Display:
        self.update(bundle)
        return self

    def update(self, bundle: dict[str, str], **_: Any) -> None:
        with self.drawn:
            self.bundles.append(bundle)
            self.drawn.notify_all()

    def wait_for(self, mime: str, text: str) -> None:
        with self.drawn:
            assert self.drawn.wait_for(lambda: text in self.bundles[-1].get(mime, ""), timeout=20)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Display:
    shown = Display()
    monkeypatch.setattr("IPython.display.display", shown)
    monkeypatch.setattr(board_module, "running_kernel", lambda: object())
    return shown


def test_events_are_drawn_and_the_last_picture_is_static(display: Display) -> None:
    bus = EventBus()
    board = Board(bus, decode, "base/model", "http://x")
    board.show()
    train(bus, "pirate", steps=5)
    display.wait_for("text/html", "pirate")
    board.close()
    assert set(display.bundles[-1]) == {"image/svg+xml", "text/plain"}
    count = len(display.bundles)
    train(bus, "later", steps=5)
    board.close()
    assert len(display.bundles) == count


def test_events_between_two_pictures_share_the_next(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "FRAME_SECONDS", 3600.0)
    bus = EventBus()
    board = Board(bus, decode, "base/model", "http://x")
    board.show()
    train(bus, "pirate", steps=5)
    display.wait_for("text/html", "pirate")
    train(bus, "later", steps=2000)
    time.sleep(0.2)
    assert "later" not in display.bundles[-1]["text/html"]
    board.close()  # does not wait for the next picture's time
    assert len(display.bundles) == 4  # the style, the first, one live, the last
    assert "later" in display.bundles[-1]["image/svg+xml"]


def test_a_quiet_board_is_static_until_something_happens(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(board_module, "FRAME_SECONDS", 0.01)
    bus = EventBus()
    board = Board(bus, decode, "base/model", "http://x")
    board.show()
    train(bus, "pirate", steps=5)
    display.wait_for("image/svg+xml", "pirate")
    train(bus, "second", steps=5)
    display.wait_for("text/html", "second")
    board.close()


def test_a_board_that_cannot_draw_harms_nobody(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = EventBus()
    board = Board(bus, decode, "base/model", "http://x")
    board.show()
    monkeypatch.setattr(display, "update", lambda *_, **__: 1 / 0)
    train(bus, "pirate", steps=5)
    board.close()
    assert bus.view().adapters[0].step == 5


def test_a_terminal_gets_text_once(capsys: pytest.CaptureFixture[str]) -> None:
    bus = EventBus()
    train(bus, "pirate", steps=5)
    board = Board(bus, decode, "base/model", "http://x")
    board.show()
    board.close()
    assert "pirate" in capsys.readouterr().out
