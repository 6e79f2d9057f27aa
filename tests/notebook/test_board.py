"""The board: what it draws when and for whom, what its controls come to, and that it never harms who publishes."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.notebook.synthetic import decode, train
from txlab.engine.bus import EventBus
from txlab.notebook import board as board_module
from txlab.notebook.board import MAX_BOARDS, Board, Boards
from txlab.notebook.errors import TxlabError
from txlab.notebook.panel import Action
from txlab.notebook.views.frame import BoardOptions

PICTURE = "image/svg+xml"


class Display:
    """Stands for a notebook's displays: keeps the bundles and says when one came."""

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


def make_board(bus: EventBus, controls: Any = None) -> Board:
    board = Board(bus, decode, "base/model", "http://x", controls)
    board.show()
    return board


def look_at(board: Board, page: str = "page") -> None:
    """What a page says that begins to show the board."""
    board._panel._receive(None, {"hello": page}, [])


def wait_for_region(board: Board, region: str, text: str) -> None:
    """Until the page would show ``text``."""
    deadline = time.monotonic() + 20
    while text not in getattr(board._panel._widget, f"html_{region}"):
        assert time.monotonic() < deadline, f"{text!r} was never shown"
        time.sleep(0.01)


# --------------------------------------------------------------------------------------- pictures


def test_where_no_page_looks_the_picture_is_live_and_the_last_one_static(display: Display) -> None:
    bus = EventBus()
    board = make_board(bus)
    before = board._panel._widget.html_adapters
    train(bus, "pirate", steps=5)
    display.wait_for("text/html", "pirate")
    assert board._panel._widget.html_adapters == before, "nothing is drawn for nobody"
    board.close()
    assert set(display.bundles[-1]) == {PICTURE, "text/plain"}
    count = len(display.bundles)
    train(bus, "later", steps=5)
    board.close()
    assert len(display.bundles) == count


def test_events_between_two_pictures_share_the_next(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "FRAME_SECONDS", 3600.0)
    bus = EventBus()
    board = make_board(bus)
    train(bus, "pirate", steps=5)
    display.wait_for("text/html", "pirate")
    train(bus, "later", steps=2000)
    time.sleep(0.2)
    assert "later" not in display.bundles[-1]["text/html"]
    count = len(display.bundles)
    board.close()  # does not wait for the next picture's time
    assert len(display.bundles) == count + 2  # the widget's output is emptied, the picture is drawn
    assert "later" in display.bundles[-1][PICTURE]


def test_a_quiet_board_is_static_until_something_happens(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(board_module, "FRAME_SECONDS", 0.01)
    bus = EventBus()
    board = make_board(bus)
    train(bus, "pirate", steps=5)
    display.wait_for(PICTURE, "pirate")
    train(bus, "second", steps=5)
    display.wait_for("text/html", "second")
    board.close()


def test_a_page_that_looks_gets_regions_and_the_picture_rests(display: Display) -> None:
    bus = EventBus()
    board = make_board(bus)
    look_at(board)
    display.wait_for(PICTURE, "svg")  # what the notebook holds if it is saved now
    train(bus, "pirate", steps=5)
    wait_for_region(board, "adapters", "pirate")
    assert "pirate" not in display.bundles[-1][PICTURE]
    board.close()
    assert "pirate" in display.bundles[-1][PICTURE]


def test_a_board_that_cannot_draw_harms_nobody(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = EventBus()
    board = make_board(bus)
    failed = threading.Event()
    with monkeypatch.context() as broken:
        broken.setattr(display, "update", lambda *_, **__: (failed.set(), 1 / 0))
        train(bus, "pirate", steps=5)
        assert failed.wait(20)
    train(bus, "later", steps=5)
    display.wait_for("text/html", "later")
    board.close()
    assert bus.view().adapters[0].step == 5


def test_a_terminal_gets_text_once(capsys: pytest.CaptureFixture[str]) -> None:
    bus = EventBus()
    train(bus, "pirate", steps=5)
    board = make_board(bus)
    board.close()
    assert "pirate" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- controls


def test_a_setting_is_drawn_at_once(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "FRAME_SECONDS", 3600.0)
    bus = EventBus()
    train(bus, "pirate", steps=5)
    board = make_board(bus)
    look_at(board)
    board._act(Action("smoothing", "0.5"))
    wait_for_region(board, "settings", 'value="0.5"')
    board.close()


def test_a_board_begins_with_its_options(display: Display) -> None:
    bus = EventBus()
    train(bus, "pirate", steps=5)
    options = BoardOptions("grad_norm", "tokens", smoothing=0.5, log=False, logprobs=True)
    board = Board(bus, decode, "base/model", "http://x", options=options)
    board.show()
    settings = board._panel._widget.html_settings
    for chosen in ('"grad_norm" selected', '"tokens" selected', '"linear" selected', 'value="0.5"'):
        assert chosen in settings
    assert 'aria-pressed="true"' in board._panel._widget.html_samples
    assert "gradient norm" in board._panel._widget.html_chart.lower()
    board.close()


def refuse(_: Action) -> str:
    raise TxlabError("There is no step 7.")


@pytest.mark.parametrize(
    ("control", "notice"),
    [
        (lambda _: "paused", ">pirate: paused<"),
        (refuse, ">There is no step 7.<"),
        (lambda _: 1 / 0, ">pirate: pause failed: "),
    ],
)
def test_what_a_control_comes_to_is_said(display: Display, control: Any, notice: str) -> None:
    bus = EventBus()
    train(bus, "pirate", steps=5)
    board = make_board(bus, {"pause": control})
    look_at(board)
    board._act(Action("pause", target="pirate"))
    wait_for_region(board, "head", notice)
    board.close()


# ---------------------------------------------------------------------------------- several boards


def shown_in(boards: Boards, bus: EventBus) -> Board:
    board = Board(bus, decode, "base/model", "http://x")
    boards.show(board)
    return board


def test_boards_live_side_by_side_and_the_oldest_freezes(display: Display) -> None:
    bus, boards = EventBus(), Boards()
    shown = [shown_in(boards, bus) for _ in range(MAX_BOARDS + 1)]
    assert [board._thread.is_alive() for board in shown] == [False, *[True] * MAX_BOARDS]
    boards.close()
    assert not any(board._thread.is_alive() for board in shown)
    boards.close()


def test_a_board_whose_output_is_gone_freezes_when_the_next_comes(display: Display) -> None:
    bus, boards = EventBus(), Boards()
    gone, kept, unseen = (shown_in(boards, bus) for _ in range(3))
    for board in (gone, kept):
        look_at(board)
    gone._panel._receive(None, {"bye": "page"}, [])
    new = shown_in(boards, bus)
    assert [board._thread.is_alive() for board in (gone, kept, unseen, new)] == [False, True, True, True]
    boards.close()
