"""Actions of a page become calls of the lab; what the calls themselves do is tested with the controls."""

from __future__ import annotations

from typing import Any

import pytest

from txlab.notebook.errors import TxlabError
from txlab.notebook.panel import Action
from txlab.notebook.steering import board_controls


class Recorder:
    """Takes any call down, and returns what was set for it."""

    def __init__(self, **returns: Any):
        self.calls: list[tuple[Any, ...]] = []
        self._returns = returns

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, *args)) or self._returns.get(name)


@pytest.mark.parametrize(
    ("action", "call", "said"),
    [
        (Action("pause", target="m"), ("pause", "m"), "paused; its clients wait"),
        (Action("resume", target="m"), ("resume", "m"), "goes on"),
        (
            Action("stop", target="m"),
            ("stop_run", "m"),
            "stopped until resumed; its clients are told",
        ),
        (Action("save", target="m"), ("save", "m"), "saved as tinker://x"),
        (Action("rename", target="m", fields={"name": " a b "}), ("rename", "m", "a b"), "is called a b now"),
        (
            Action("fork", target="m", fields={"name": " a ", "step": "12"}),
            ("fork", "m", "a", 12),
            "forked as a; lab.training_client('f:train:0') trains it",
        ),
        (
            Action("fork", target="m", fields={"name": "a", "step": ""}),
            ("fork", "m", "a", None),
            "forked as a; lab.training_client('f:train:0') trains it",
        ),
        (Action("rewind", target="m", fields={"step": "1200"}), ("rewind", "m", 1200), "is back at step 1,200"),
        (Action("rewind", target="m"), ("rewind", "m", None), "is back at step 1,200"),
        (Action("unpin", target="3"), ("remove", 3), "Unpinned prompt 3."),
    ],
)
def test_each_action_is_one_call(action: Action, call: tuple[Any, ...], said: str) -> None:
    lab, pins = Recorder(save="tinker://x", rewind=1200, fork="f:train:0"), Recorder()
    assert board_controls(lab, pins)[action.name](action) == said  # type: ignore[arg-type]
    assert lab.calls + pins.calls == [call]


def test_what_names_nothing_or_no_step_is_refused() -> None:
    lab = Recorder()
    controls = board_controls(lab, lab)  # type: ignore[arg-type]
    assert controls.keys() == {"pause", "resume", "stop", "rename", "save", "fork", "rewind", "unpin"}
    for name in controls:
        with pytest.raises(TxlabError, match=f"^{name}: of what"):
            controls[name](Action(name, fields={"name": "x"}))
    for wrong in ("x", "-1", "1.5", "²"):
        with pytest.raises(TxlabError, match=f"'{wrong}' is no step"):
            controls["rewind"](Action("rewind", target="m", fields={"step": wrong}))
    controls["rename"](Action("rename", target="m", fields={"name": ["several"]}))
    assert lab.calls == [("rename", "m", "")], "which the lab refuses"
