"""The live board: one thread that waits for events and redraws a panel, a few times a second at most.

Where a page shows the panel, its regions are drawn, and the picture below it now and then. Where nothing does, the
picture is the board: inline SVG while something happens, which redraws without flicker and follows JupyterLab's theme.
When it is quiet or closed, the picture is an ``image/svg+xml`` output, which static pages and repositories show too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from txlab.engine.bus import EventBus
from txlab.notebook.errors import TxlabError
from txlab.notebook.loops import running_kernel
from txlab.notebook.panel import Action, Bundle, Panel
from txlab.notebook.steering import Control
from txlab.notebook.views.board_html import REGIONS, render_regions
from txlab.notebook.views.frame import BoardOptions, Decode, Frame, PinView, make_frame
from txlab.notebook.views.picture import render_svg
from txlab.notebook.views.text import render_text
from txlab.threads import daemon_thread

logger = logging.getLogger(__name__)

FRAME_SECONDS = 0.33
SHARE = 0.02  # of a processor that drawing may take; a board of many adapters is drawn less often
CHARACTERS_PER_SECOND = 300_000  # that travel; Jupyter's server cuts off more than a million bytes
PICTURE_SECONDS = 20.0  # between pictures that are not seen yet
QUIET_SECONDS = 5.0
JOIN_SECONDS = 2.0
MAX_BOARDS = 4


class Board:
    """Handle of a board on display. ``close`` leaves its last picture in the notebook."""

    def __init__(
        self,
        bus: EventBus,
        decode: Decode,
        model: str,
        url: str,
        controls: Mapping[str, Control] | None = None,
        pins: Callable[[], tuple[PinView, ...]] = tuple,
        options: BoardOptions | None = None,
    ):
        """Nothing is shown yet.

        Args:
            bus: what is shown.
            decode: tokens to text.
            model: the base model's name.
            url: where it is served.
            controls: what is done for each action on the board that is more than another look at it, by name.
            pins: the prompts that are pinned to the board.
            options: what is shown at first.
        """
        self._bus = bus
        self._decode = decode
        self._model = model
        self._url = url
        self._controls = controls or {}
        self._pins = pins
        self._lock = threading.Lock()  # of the options
        self._options = options or BoardOptions()
        self._notice = ""
        self._panel = Panel("txlab board", REGIONS, self._act, on_look=self._hurry)
        self._hurried = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._pictured = -PICTURE_SECONDS  # when the picture that a saved notebook shows was drawn last

    @property
    def abandoned(self) -> bool:
        """Whether pages showed the board, and none does any more."""
        return self._panel.greeted and not self._panel.alive

    def show(self) -> None:
        """Display the board in the running cell; in a terminal, print it once."""
        if running_kernel() is None:
            print(self)
            return
        frame = self._frame(live=True)
        self._panel.show(_picture(frame), **render_regions(frame))
        self._thread = daemon_thread(self._follow, "txlab-board")
        self._thread.start()

    def close(self) -> None:
        """Draw the last picture and end. A second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._hurry()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
            self._panel.close(_picture(self._frame(live=False)))

    # ------------------------------------------------------------------------------- drawing

    def _follow(self) -> None:
        seen, quiet = 0, False
        while not self._closing.is_set():
            version = self._bus.wait(seen, None if quiet else QUIET_SECONDS)
            quiet = version == seen
            seen = version
            if not self._closing.is_set():
                self._hurried.wait(self._draw(quiet))  # gather what comes meanwhile into the next picture
                self._hurried.clear()

    def _draw(self, quiet: bool) -> float:
        """Draw what is looked at; returns how many seconds to leave it as it is."""
        began = time.thread_time()
        sent = 0
        try:
            if self._panel.alive:
                sent = self._panel.update(**render_regions(self._frame(live=True)))
            self._draw_picture(quiet)
        except Exception:
            logger.exception("The board could not be drawn")  # a view that fails never fails training
        return max(FRAME_SECONDS, sent / CHARACTERS_PER_SECOND, (time.thread_time() - began) / SHARE)

    def _draw_picture(self, quiet: bool) -> None:
        """Live where it is all that is seen; else now and then, for the notebook may be saved at any time."""
        now = time.monotonic()
        live = not (quiet or self._panel.greeted)
        if live or quiet or now - self._pictured > PICTURE_SECONDS:
            self._panel.draw(_picture(self._frame(live)))
            self._pictured = self._pictured if live else now

    def _frame(self, live: bool) -> Frame:
        view, notice = self._bus.view(), self._notice if live else ""
        return make_frame(view, self._decode, self._model, self._url, live, self._options, self._pins(), notice)

    def _hurry(self) -> None:
        """Draw at once."""
        self._hurried.set()
        self._bus.wake()

    # -------------------------------------------------------------------------------- acting

    def _act(self, action: Action) -> None:
        if control := self._controls.get(action.name):
            self._notice = self._outcome(control, action)
        else:
            with self._lock:
                self._options = self._options.changed(action.name, action.value, action.target)
        self._hurry()

    def _outcome(self, control: Control, action: Action) -> str:
        names = {adapter.model_id: adapter.name for adapter in self._bus.view().adapters}
        try:
            said = control(action)
        except TxlabError as error:
            return str(error)
        except Exception as error:
            logger.exception("The board's action %r failed", action.name)
            said = f"{action.name} failed: {error}"
        return f"{names[action.target]}: {said}" if action.target in names else said

    def __repr__(self) -> str:
        return render_text(self._frame(live=not self._closing.is_set()))

    def _ipython_display_(self) -> None:
        """Nothing: a board is on display from the start, and a cell may end with ``lab.board()``."""


class Boards:
    """The live boards of a lab: a few at most. The oldest freezes, and so does one whose output is gone."""

    def __init__(self) -> None:
        self._live: list[Board] = []

    def show(self, board: Board) -> None:
        """Display one more."""
        for old in [one for one in self._live if one.abandoned]:
            self._close(old)
        for old in self._live[: 1 - MAX_BOARDS]:
            self._close(old)
        board.show()
        self._live.append(board)

    def close(self) -> None:
        """Freeze all."""
        for board in [*self._live]:
            self._close(board)

    def _close(self, board: Board) -> None:
        self._live.remove(board)
        board.close()


def _picture(frame: Frame) -> Bundle:
    kind, in_page = ("text/html", True) if frame.live else ("image/svg+xml", False)
    return {kind: render_svg(frame, in_page=in_page), "text/plain": render_text(frame)}
