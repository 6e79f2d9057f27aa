"""The live view: what travels to the page, what comes back, also while a cell blocks, and what stays in the output."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.notebook.kernels import Cell, Kernel
from txlab.notebook.errors import TxlabError
from txlab.notebook.panel import Action, Panel

SHOW = """
import threading
from txlab.notebook.panel import Panel
acted, looked = threading.Event(), threading.Event()
actions = []
def act(action):
    actions.append(action)
    acted.set()
panel = Panel("probe", ("head", "body"), act, looked.set)
panel.show({"text/html": "<b>first</b>", "text/plain": "first"}, head="<i>1</i>", body="<i>2</i>")
"""
ACTION = {"name": "go", "value": "", "target": "it", "fields": {"name": "x", "kinds": ["a", "b"]}}


@pytest.fixture
def shown(kernel: Kernel) -> Iterator[Cell]:
    yield kernel.ok(SHOW)
    kernel.ok("panel.close({'text/plain': 'last'})")


def widget_id(cell: Cell) -> str:
    opened = {m["comm_id"]: m["data"]["state"] for m in cell.comms if m["type"] == "comm_open"}
    return next(comm_id for comm_id, state in opened.items() if "regions" in state)


def updates(cell: Cell) -> list[dict[str, str]]:
    return [m["data"]["state"] for m in cell.comms if m["type"] == "comm_msg" and m["data"]["method"] == "update"]


def test_the_outputs_are_a_style_the_widget_and_a_picture(shown: Cell):
    style, widget, picture = shown.displays
    assert "txlab-outputs" in style["text/html"]
    assert widget["application/vnd.jupyter.widget-view+json"]["model_id"] == widget_id(shown)
    assert picture == {"text/html": "<b>first</b>", "text/plain": "first"}
    assert [bundle["text/plain"] for bundle in (style, widget)] == ["", ""], "no words where widgets are unknown"


def test_a_page_finds_the_present_state(kernel: Kernel, shown: Cell):
    state = next(m["data"]["state"] for m in shown.comms if m["comm_id"] == widget_id(shown))
    assert state["regions"] == ["head", "body"]
    assert (state["html_head"], state["html_body"]) == ("<i>1</i>", "<i>2</i>")
    kernel.ok("panel.update(body='<i>3</i>')")
    asked = kernel.ok("panel._widget._handle_msg({'content': {'data': {'method': 'request_state'}}})")
    assert updates(asked)[0]["html_body"] == "<i>3</i>"


def test_only_regions_that_changed_travel(kernel: Kernel, shown: Cell):
    cell = kernel.ok("print(panel.update(head='<i>1</i>', body='<i>4</i>'))")
    assert updates(cell) == [{"html_body": "<i>4</i>"}]
    assert cell.text.strip() == str(len("<i>4</i>"))
    assert updates(kernel.ok("panel.update(head='<i>1</i>', body='<i>4</i>')")) == []


@pytest.mark.parametrize(
    "blocked", ["acted.wait(30)", "end = time.time() + 30\nwhile not actions and time.time() < end: pass"]
)
def test_actions_act_while_a_cell_blocks(kernel: Kernel, shown: Cell, blocked: str):
    comm, subshell = widget_id(shown), kernel.subshell()
    update = "threading.Thread(target=lambda: panel.update(head='<i>from a thread</i>')).start()"
    with kernel.running(f"import time\n{update}\n{blocked}\nassert actions"):
        kernel.tell(comm, {"hello": "page"}, subshell)
        kernel.tell(comm, {"action": ACTION}, subshell)
    cell = kernel.ok("print(panel.alive, looked.is_set(), actions)")
    assert cell.text.split(" ", 2)[:2] == ["True", "True"]
    assert str(Action("go", "", "it", {"name": "x", "kinds": ["a", "b"]})) in cell.text


def test_what_is_left_is_the_picture_alone(kernel: Kernel):
    shown = kernel.ok(SHOW)
    closed = kernel.ok("panel.close({'image/svg+xml': '<svg/>', 'text/plain': 'last'})\npanel.close({})")
    assert closed.displays == [{"text/plain": ""}, {"image/svg+xml": "<svg/>", "text/plain": "last"}]
    assert widget_id(shown) in {m["comm_id"] for m in closed.comms if m["type"] == "comm_close"}
    late = kernel.ok("print(panel.update(head='late'), panel.alive)\npanel.notify('late')\npanel.draw({})")
    assert late.text.split() == ["0", "False"]
    assert late.displays == late.comms == []
    assert kernel.ok("import ipywidgets; print(len(ipywidgets.widgets.widget._instances))").text.strip() == "0"


def test_without_widgets_the_picture_is_there(kernel: Kernel):
    shown = kernel.ok("import sys; sys.modules['anywidget'] = None\n" + SHOW)
    assert shown.comms == []
    assert shown.displays[-1]["text/plain"] == "first"
    cell = kernel.ok("panel.update(head='x')\npanel.draw({'text/plain': 'second'})\nprint(panel.alive, panel.greeted)")
    assert cell.text.split() == ["False", "False"]
    assert cell.displays == [{"text/plain": "second"}]
    assert kernel.ok("panel.close({'text/plain': 'last'})\ndel sys.modules['anywidget']").displays[-1] == {
        "text/plain": "last"
    }


# ------------------------------------------------------------------------------ without a kernel


class Display:
    """Stands for a display handle."""

    def update(self, *_: Any, **__: Any) -> None:
        pass


@pytest.fixture
def make_panel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Panel]:
    """Panels on display nowhere."""
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: Display())

    def make(on_action: Callable[[Action], None]) -> Panel:
        panel = Panel("probe", ("head",), on_action)
        panel.show()
        return panel

    return make


def notice_after(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the panel says once the action was tried."""
    said: list[str] = []
    told = threading.Event()
    monkeypatch.setattr(panel, "notify", lambda text: (said.append(text), told.set()))
    panel._receive(None, {"action": ACTION}, [])
    assert told.wait(20)
    return said[0]


@pytest.mark.parametrize(
    ("error", "notice"), [(TxlabError("pick another"), "pick another"), (ValueError("odd"), "go failed: odd")]
)
def test_a_handler_that_fails_is_a_notice(make_panel: Any, monkeypatch: Any, error: Exception, notice: str):
    def fail(_: Action) -> None:
        raise error

    panel = make_panel(fail)
    for _ in range(2):  # the second time as well
        assert notice_after(panel, monkeypatch) == notice


def test_a_slow_action_holds_up_no_other(make_panel: Any):
    hold, quick = threading.Event(), threading.Event()
    panel = make_panel(lambda action: hold.wait(20) if action.target == "slow" else quick.set())
    panel._receive(None, {"action": {**ACTION, "target": "slow"}}, [])
    panel._receive(None, {"action": ACTION}, [])
    assert quick.wait(20)
    hold.set()


def test_alive_is_as_long_as_a_page_looks(make_panel: Any):
    panel = make_panel(print)
    assert not panel.alive
    for view in ("one", "two"):
        panel._receive(None, {"hello": view}, [])
    panel._receive(None, {"bye": "one"}, [])
    assert panel.alive
    panel._receive(None, {"bye": "two"}, [])
    panel._receive(None, {"hello": "two"}, [])  # said before, but held up by a cell
    assert not panel.alive
    assert panel.greeted


@pytest.mark.parametrize("content", [None, {}, "hello", {"hello": 1}, {"action": {"name": "go"}}, {"action": ["go"]}])
def test_messages_that_make_no_sense_do_nothing(make_panel: Any, content: object):
    panel = make_panel(lambda action: pytest.fail(f"acted: {action}"))
    panel._receive(None, content, [])
    assert not panel.greeted
