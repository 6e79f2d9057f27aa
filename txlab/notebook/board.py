"""The live board: one thread that waits for events and redraws a display, a few times a second at most.

While something happens, the display holds inline SVG, which redraws without flicker and follows JupyterLab's theme.
When it is quiet or closed, it holds an ``image/svg+xml`` output, which static pages and repository browsers show too.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from txlab.engine.bus import EventBus
from txlab.notebook.loops import running_kernel
from txlab.notebook.views.frame import Decode, Frame, make_frame
from txlab.notebook.views.picture import render_svg
from txlab.notebook.views.style import FIT_IN_LAB
from txlab.notebook.views.text import render_text
from txlab.threads import daemon_thread

logger = logging.getLogger(__name__)

FRAME_SECONDS = 0.33
QUIET_SECONDS = 5.0
JOIN_SECONDS = 2.0


class Board:
    """Handle of a board on display. ``close`` leaves its last picture in the notebook."""

    def __init__(self, bus: EventBus, decode: Decode, model: str, url: str):
        self._bus = bus
        self._decode = decode
        self._model = model
        self._url = url
        self._handle: Any = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def show(self) -> None:
        """Display the board in the running cell; in a terminal, print it once."""
        from IPython.display import display

        if running_kernel() is None:
            print(self)
            return
        display({"text/html": FIT_IN_LAB, "text/plain": ""}, raw=True)
        self._handle = display(self._bundle(live=True), raw=True, display_id=True)
        self._thread = daemon_thread(self._follow, "txlab-board")
        self._thread.start()

    def close(self) -> None:
        """Draw the last picture and end. A second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._bus.wake()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
            self._draw(live=False)

    def _follow(self) -> None:
        seen, quiet = 0, False
        while not self._closing.is_set():
            version = self._bus.wait(seen, None if quiet else QUIET_SECONDS)
            quiet = version == seen
            if not self._closing.is_set():
                self._draw(live=not quiet)  # a notebook saved while nothing happens holds the static picture
            seen = version
            self._closing.wait(FRAME_SECONDS)  # gather what comes meanwhile into the next picture

    def _draw(self, live: bool) -> None:
        try:
            self._handle.update(self._bundle(live), raw=True)
        except Exception:
            logger.exception("The board could not be drawn")  # a view that fails never fails training

    def _bundle(self, live: bool) -> dict[str, str]:
        frame = self._frame(live)
        text = render_text(frame)
        if live:
            return {"text/html": render_svg(frame, in_page=True), "text/plain": text}
        return {"image/svg+xml": render_svg(frame), "text/plain": text}

    def _frame(self, live: bool) -> Frame:
        return make_frame(self._bus.view(), self._decode, self._model, self._url, live)

    def __repr__(self) -> str:
        return render_text(self._frame(live=not self._closing.is_set()))

    def _ipython_display_(self) -> None:
        """Nothing: a board is on display from the start, and a cell may end with ``lab.board()``."""
