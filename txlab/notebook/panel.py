"""A live view in a cell's output that the user can act on, and the picture that stays of it.

The live view is a widget without knowledge (panel.js): Python renders HTML, a region at a time; the page patches it in
place and sends back what the user does. Below it lies a picture, an ordinary output: it shows wherever the widget does
not, in front ends without widgets, on pages of repositories and in a notebook that is opened again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from txlab.notebook.errors import TxlabError
from txlab.notebook.lanes import Lanes
from txlab.notebook.reachable import answer_while_cells_run
from txlab.notebook.views.style import FIT_IN_LAB

logger = logging.getLogger(__name__)

Bundle = Mapping[str, str]  # MIME type -> content
EMPTY: Bundle = {"text/plain": ""}
_HTML = "html_"  # before a region's name: the trait with its HTML, as in panel.js

# Three outputs follow each other: this one, the widget, the picture. It is never seen itself. The widget shows while
# Python answers it, and the picture while the widget does not show.
_MARK = ".jp-OutputArea-child:has(> .jp-OutputArea-output > .txlab-outputs)"
_WIDGET = f"{_MARK} + .jp-OutputArea-child"
_ALIVE = ":has(.txlab-alive)"
_OUTPUTS = (
    f'<div class="txlab-outputs">{FIT_IN_LAB}<style>'
    f"{_MARK}, {_WIDGET}:not({_ALIVE}), {_WIDGET}{_ALIVE} + .jp-OutputArea-child {{ display: none; }}"
    "</style></div>"
)


@dataclass(frozen=True, slots=True)
class Action:
    """What the user did: an element with ``data-action="name"`` was clicked, changed or submitted."""

    name: str
    value: str | None = None  # the element's own; "true" or "false" of a checkbox
    target: str | None = None  # its data-target, or that of what it lies in
    fields: Mapping[str, str | list[str]] = field(default_factory=dict)  # named inputs of the enclosing [data-form]


class Panel:
    """Regions of HTML in a cell's output, live on every page that shows it.

    In the HTML, buttons with ``data-action`` act when clicked, inputs and selects when changed, forms when submitted,
    from a text area by Ctrl+Enter or Cmd+Enter. Elements with the same ``data-key`` are the same in the next version
    of a region; what the user is typing, opened, scrolled or focused stays.
    """

    def __init__(
        self,
        label: str,
        regions: Sequence[str],
        on_action: Callable[[Action], None],
        on_look: Callable[[], None] = lambda: None,
    ):
        """Nothing is shown yet.

        Args:
            label: what assistive technology calls the whole.
            regions: names, in the order in which they are shown.
            on_action: called on a thread of its own, in order for the same action on the same target, also while a
                cell blocks. What it raises becomes the notice.
            on_look: called when a page begins to show the panel; it must not block.
        """
        self._label = label
        self._regions = tuple(regions)
        self._on_action = on_action
        self._on_look = on_look
        self._lanes = Lanes("txlab-action")
        self._lock = threading.Lock()  # of the widget's state
        self._widget: Any = None  # none before it is shown, where widgets are missing, and after it was closed
        self._displays: tuple[Any, ...] = ()  # of the widget and the picture
        self._views: set[str] = set()
        self._left: set[str] = set()  # views that are gone: what they said earlier may come later
        self._greeted = False

    @property
    def alive(self) -> bool:
        """Whether a page shows the widget, as far as it has told."""
        return bool(self._views)

    @property
    def greeted(self) -> bool:
        """Whether a page ever showed the widget: the front end has widgets, and hides the picture meanwhile."""
        return self._greeted

    def show(self, picture: Bundle = EMPTY, **html: str) -> None:
        """Display the panel in the running cell, with its first picture and regions. Call it in a kernel, once."""
        from IPython.display import display

        display({"text/html": _OUTPUTS, **EMPTY}, raw=True)
        try:
            self._widget = self._make_widget(html)
            data, metadata = _view_bundle(self._widget)
        except Exception:
            logger.exception("The widget could not be made; pictures are shown in its place")
            self._widget, data, metadata = None, dict(EMPTY), {}
        widget = display(data, metadata=metadata, raw=True, display_id=True)
        self._displays = (widget, display(dict(picture), raw=True, display_id=True))

    def update(self, **html: str) -> int:
        """Show these regions. Only those that changed travel; returns of how many characters. From any thread."""
        with self._lock:
            if self._widget is None:
                return 0
            changed = {name: text for name, text in html.items() if getattr(self._widget, _HTML + name) != text}
            with self._widget.hold_sync():
                for name, text in changed.items():
                    setattr(self._widget, _HTML + name, text)
        return sum(map(len, changed.values()))

    def draw(self, picture: Bundle) -> None:
        """Replace the picture. From any thread."""
        for display in self._displays[1:]:
            display.update(dict(picture), raw=True)

    def notify(self, text: str) -> None:
        """Say something, in place of the last notice. From any thread."""
        with self._lock:
            if self._widget is not None:
                self._widget.notice = text

    def close(self, picture: Bundle) -> None:
        """Leave the picture alone in the output. A second call, or one before it was shown, does nothing."""
        displays, self._displays = self._displays, ()
        if not displays:
            return
        with self._lock:
            widget, self._widget = self._widget, None
            self._views.clear()
        for display, bundle in zip(displays, (EMPTY, picture), strict=True):
            with _logged():
                display.update(dict(bundle), raw=True)
        if widget is not None:
            with _logged():
                widget.layout.close()
                widget.close()

    def _make_widget(self, html: Mapping[str, str]) -> Any:
        import anywidget
        from traitlets import List, Unicode

        regions = {_HTML + name: Unicode(html.get(name, "")).tag(sync=True) for name in self._regions}
        state = {
            "label": Unicode(self._label).tag(sync=True),
            "regions": List(list(self._regions)).tag(sync=True),
            "notice": Unicode("").tag(sync=True),
        }
        kind = type(
            "PanelWidget", (anywidget.AnyWidget,), {"_esm": Path(__file__).with_suffix(".js")} | state | regions
        )
        widget = kind()
        widget.on_msg(self._receive)
        for comm in (widget.comm, widget.layout.comm):
            answer_while_cells_run(comm)
        return widget

    def _receive(self, _: object, content: Any, __: object) -> None:
        """A message from a page, on whichever thread the kernel reads it."""
        match content:
            case {"hello": str(view)} if view not in self._left:
                self._views.add(view)
                self._greeted = True
                self._send({"welcome": view})
                self._on_look()
            case {"bye": str(view)}:
                self._left.add(view)
                self._views.discard(view)
            case {"action": {"name": str(name), "value": value, "target": target, "fields": fields}}:
                action = Action(name, value, target, fields)
                self._lanes.put((name, target), lambda: self._act(action))

    def _send(self, message: Mapping[str, str]) -> None:
        with self._lock:
            if self._widget is not None:
                self._widget.send(message)

    def _act(self, action: Action) -> None:
        try:
            self._on_action(action)
        except TxlabError as error:
            self.notify(str(error))
        except Exception as error:
            logger.exception("The action %r failed", action.name)
            self.notify(f"{action.name} failed: {error}")


def _view_bundle(widget: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata of the widget's output, without words where it cannot be shown."""
    bundle = widget._repr_mimebundle_()
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    return {**data, **EMPTY}, metadata


@contextmanager
def _logged() -> Iterator[None]:
    """Whatever goes wrong at the end is for the log: the kernel may be on its way out."""
    try:
        yield
    except Exception:
        logger.exception("A panel was not closed in order")
