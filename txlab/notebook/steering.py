"""What the controls on a board do: actions from a page become calls of the lab's methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from txlab.notebook.errors import TxlabError
from txlab.notebook.panel import Action

if TYPE_CHECKING:
    from txlab.notebook.controls import Controls
    from txlab.notebook.pins import Pins

Control = Callable[[Action], str]  # does what was asked, and says what it came to


def board_controls(lab: Controls, pins: Pins) -> Mapping[str, Control]:
    """A control for each action of the board that changes something; they raise TxlabError as the methods do."""

    def pause(action: Action) -> str:
        lab.pause(_target(action))
        return "paused; its clients wait"

    def resume(action: Action) -> str:
        lab.resume(_target(action))
        return "goes on"

    def stop(action: Action) -> str:
        lab.stop_run(_target(action))
        return "stopped until resumed; its clients are told"

    def rename(action: Action) -> str:
        name = _text(action, "name")
        lab.rename(_target(action), name)
        return f"is called {name} now"

    def save(action: Action) -> str:
        return f"saved as {lab.save(_target(action))}"

    def fork(action: Action) -> str:
        name = _text(action, "name")
        model_id = lab.fork(_target(action), name, _step(action))
        return f"forked as {name}; lab.training_client({model_id!r}) trains it"

    def rewind(action: Action) -> str:
        return f"is back at step {lab.rewind(_target(action), _step(action)):,}"

    def unpin(action: Action) -> str:
        pins.remove(int(_target(action)))
        return f"Unpinned prompt {_target(action)}."

    controls = (pause, resume, stop, rename, save, fork, rewind, unpin)
    return {control.__name__: control for control in controls}


def _target(action: Action) -> str:
    if not action.target:
        raise TxlabError(f"{action.name}: of what? The control names nothing.")
    return action.target


def _text(action: Action, name: str) -> str:
    """What was typed into a field; empty where it is not there."""
    text = action.fields.get(name)
    return text.strip() if isinstance(text, str) else ""


def _step(action: Action) -> int | None:
    """The chosen step; None where none is."""
    text = _text(action, "step")
    if text and not text.isdecimal():
        raise TxlabError(f"{text!r} is no step: expected a whole number.")
    return int(text) if text else None
