"""A page that is opened while a cell runs is answered at once, in a real kernel."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.notebook.kernels import Kernel, open_kernel
from txlab.notebook.reachable import Subshell, answer_while_cells_run

SHOW = """
import os, time
from IPython import get_ipython
from txlab.notebook.panel import Panel
from txlab.notebook.reachable import Subshell
acted = []
panel = Panel("p", ("body",), acted.append)
panel.show(body="<i>1</i>")
"""
UNTIL = "while not os.path.exists({path!r}): time.sleep(0.02)"
ACTION = {"name": "go", "value": None, "target": None, "fields": {}}


@pytest.fixture(scope="module")
def kernel(lab_env: dict[str, str]) -> Iterator[Kernel]:
    with open_kernel(lab_env) as kernel:
        kernel.ok(SHOW)
        yield kernel


def test_lookups_are_answered_while_a_cell_runs(kernel: Kernel, tmp_path: Path):
    enough = tmp_path / "enough"
    with kernel.running(UNTIL.format(path=str(enough))):
        assert kernel.ask("kernel_info_request", {})["content"]["implementation"] == "ipython"
        comms = kernel.ask("comm_info_request", {"target_name": "jupyter.widget"})["content"]["comms"]
        states = kernel.widget_states()
        enough.touch()
    assert set(comms) == set(states)
    assert "<i>1</i>" in {state["state"].get("html_body") for state in states.values()}


def test_a_view_acts_for_a_page_without_subshells(kernel: Kernel):
    (widget,) = [id for id, state in kernel.widget_states().items() if "html_body" in state["state"]]
    with kernel.running(
        "end = time.time() + 30\nwhile not acted and time.time() < end: time.sleep(0.02)\nassert acted"
    ):
        kernel.tell(widget, {"action": ACTION})


def test_everything_else_is_as_it_was(kernel: Kernel):
    own = kernel.ok("print(Subshell.of(get_ipython().kernel).id)").text.strip()
    other = kernel.subshell()
    assert kernel.ask("kernel_info_request", {}, other)["parent_header"]["subshell_id"] == other
    assert kernel.ok("1 + 1").text == "2"
    assert kernel.complete("panel.clo") == ["panel.close"]
    again = kernel.ok("Panel('q', ('body',), print).show()\nprint(Subshell.of(get_ipython().kernel).id)")
    assert again.text.strip() == own, "a kernel has one"


def test_kernels_without_subshells_are_left_alone():
    assert Subshell.of(None) is None
    assert Subshell.of(SimpleNamespace(shell_channel_thread=None)) is None
    comm = SimpleNamespace()
    answer_while_cells_run(comm)
    assert (comm._reply_subshell_for({}, "named"), comm._reply_subshell_for({}, None)) == ("named", None)


def test_a_kernel_of_other_parts_is_left_as_it_is(caplog: pytest.LogCaptureFixture):
    at_once = SimpleNamespace(add_callback=lambda call: call())
    kernel = SimpleNamespace(shell_channel_thread=SimpleNamespace(io_loop=at_once))  # no manager
    with caplog.at_level(logging.WARNING):
        assert [Subshell.of(kernel), Subshell.of(kernel)] == [None, None]
    assert len(caplog.records) == 1
