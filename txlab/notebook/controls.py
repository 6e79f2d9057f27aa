"""Steering adapters while they train. All of it may be called from any thread, also while a cell blocks."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from txlab.engine.bus import AdapterView
from txlab.engine.requests import (
    InterruptedRuns,
    NoteInterrupt,
    PauseAdapter,
    Request,
    RequestError,
    Result,
    ResumeAdapter,
    RewindAdapter,
    StopAdapter,
    StoppedRun,
    UnsteppedPasses,
)
from txlab.notebook.adapters import find_adapter, holder, warn
from txlab.notebook.drafts import BASE
from txlab.notebook.errors import TxlabError, shortly
from txlab.notebook.history import as_step
from txlab.notebook.served import LabPart
from txlab.notebook.views.tables import plural

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")

MAX_NAME = 100  # characters
NOTE_SECONDS = 5.0  # that an interrupted cell waits to be told what goes on
JOINERS = {0x200C: None, 0x200D: None}  # not seen themselves, but parts of emoji, and of words in some scripts


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run that was stopped, and what ended with it."""

    name: str
    model_id: str
    requests: int  # of training, that ran or waited
    samples: int  # requests for samples
    passes: int  # that had left a gradient, which was dropped
    address: str  # its name, or its run id where that is not enough

    def __repr__(self) -> str:
        ended = [
            *([plural(self.requests, "training request")] if self.requests else []),
            *([plural(self.samples, "request") + " for samples"] if self.samples else []),
            *([f"the gradient of {self.passes:,} forward_backward"] if self.passes else []),
        ]
        return (
            f"{self.name} is stopped. Ended: {', '.join(ended) or 'nothing, it was idle'}. Its clients' requests are "
            f"refused until lab.resume({self.address!r})."
        )


class Controls(LabPart):
    """Pause, stop, rename, save, fork, rewind and unload adapters.

    ``adapter`` is always a name or a run id; a name that several adapters have is refused, with their run ids. The
    engine obeys between two micro-batches, whatever is queued; the calls return when it has. All of them raise
    TxlabError where the lab is stopped or there is no such adapter.
    """

    def pause(self, adapter: str) -> None:
        """Let an adapter's training wait until ``resume``: what is on the device ends, and clients simply wait.

        Samples of it are drawn as ever.
        """
        self._tell(PauseAdapter(self._find(adapter).model_id))

    def resume(self, adapter: str) -> None:
        """Go on with an adapter that was paused or stopped; no effect on any other."""
        self._tell(ResumeAdapter(self._find(adapter).model_id))

    def stop_run(self, adapter: str) -> Stopped:
        """End an adapter's run, and return what ended: whoever waits for its training or samples gets an exception.

        A loop that is between two requests gets the exception at the next one: training with this adapter, and
        sampling by the clients that train it, are refused until ``resume``. Another training client, with an adapter
        of its own, trains at once. The accumulated gradient is dropped, weights and optimizer stay as they are, and
        the lab's own samples, copies and checkpoints of the adapter go on.
        """
        view = self._find(adapter)
        result = self._tell(StopAdapter(view.model_id))
        assert isinstance(result, StoppedRun)
        ended = result.requests, result.samples, result.passes
        return Stopped(view.name or view.model_id, view.model_id, *ended, result.address)

    def note_interrupt(self, sessions: frozenset[str], since: float) -> tuple[UnsteppedPasses, ...]:
        """Mark the next steps of these sessions' passes that were sent since then; returns what goes on of them.

        Times are of ``time.monotonic``. Raises TimeoutError where the engine has no time within a few seconds.
        """
        result = self._serving().engine.ask(NoteInterrupt(sessions, since)).result(NOTE_SECONDS)
        assert isinstance(result, InterruptedRuns)
        return result.runs

    def rename(self, adapter: str, name: str) -> None:
        """Call an adapter something else, on the board and in the records of its run.

        Raises TxlabError where another one is called so, or has it as its run id.
        """
        from txlab.server.controls import rename

        name = _checked(name)
        model_id = self._find(adapter).model_id
        other = holder(self._bus.view().adapters, name)
        if name == BASE or (other is not None and other.model_id != model_id):
            taken = "the base model" if other is None else f"adapter {other.model_id}"
            raise TxlabError(f"{shortly(name)} is taken by {taken}: choose another name.")
        self._on_server(rename(self._serving().server, model_id, name))

    def save(self, adapter: str, name: str | None = None, *, overwrite: bool = False) -> str:
        """Write a checkpoint of an adapter as it is now, optimizer included, and return its ``tinker://`` path.

        Args:
            adapter: a name or run id.
            name: of the checkpoint; None makes a new one of the step, ``lab-step-0012``.
            overwrite: replace a checkpoint of that name.

        Raises:
            TxlabError: the name is taken or cannot be one, or the disk refuses.
        """
        from txlab.server.controls import save

        if not isinstance(name, str | None):
            raise TxlabError(f"{shortly(name)} is no checkpoint name: it must be a str.")
        model_id = self._find(adapter).model_id
        return self._on_server(save(self._serving().server, model_id, name, overwrite))

    def rewind(self, adapter: str, step: int | None = None, *, steps: int | None = None) -> int:
        """Bring back an adapter's weights and optimizer state of an earlier step, and return that step.

        Accumulated gradients are dropped; a pass that is running is computed anew, and whatever waits is done, with
        the weights of that step. What it was before stays kept: ``rewind`` goes forward again too. Samplers keep the
        weights that they have. ``EngineSettings.kept_bytes`` bounds how many steps are kept.

        Args:
            adapter: a name or run id.
            step: the step to return to.
            steps: or how many to go back; 1 where neither is given.

        Raises:
            TxlabError: the step is not kept; the message lists those that are.
        """
        if step is not None and steps is not None:
            raise TxlabError("rewind takes step (which one) or steps (how many back), not both.")
        view = self._find(adapter)
        back = 1 if steps is None else as_step(steps, "steps")
        target = view.step - back if step is None else as_step(step)
        self._tell(RewindAdapter(view.model_id, target))
        return target

    def fork(self, adapter: str, name: str, step: int | None = None) -> str:
        """Make a new adapter of another, with its weights and optimizer state, and return its run id.

        The two are independent from then on. It belongs to the lab, not to the other's client, and lives as long as
        the lab serves, or until ``unload``; ``training_client`` trains it.

        Args:
            adapter: a name or run id.
            name: of the new one; where another adapter is called so, a warning says it.
            step: a kept step of the other; None is its present state.

        Raises:
            TxlabError: the step is not kept; the message lists those that are.
        """
        from txlab.server.controls import fork

        name, step = _checked(name), None if step is None else as_step(step)
        source_id = self._find(adapter).model_id
        served, other = self._serving(), holder(self._bus.view().adapters, name)
        model_id = self._on_server(fork(served.server, source_id, *served.own_client.next_model(), name, step))
        if name == BASE or other is not None:
            taken = "The base model" if other is None else f"Adapter {other.model_id}"
            warn(f"{taken} is called {shortly(name)} too: name this fork by its run id, {model_id}, or rename it.")
        return model_id

    def unload(self, adapter: str) -> None:
        """Free an adapter's memory, its kept steps too, as the API's ``unload_model`` does.

        Whoever waits for its training gets an exception, and so does every later request for it; a pass on the device
        ends. Checkpoints, samplers and its history stay.
        """
        from txlab.server.controls import unload

        model_id = self._find(adapter).model_id
        served = self._serving()
        self._on_server(unload(served.server, model_id))
        served.own_client.forget(model_id)

    def training_client(self, adapter: str) -> tinker.TrainingClient:
        """The SDK's client that trains a fork; the same one each time, since its requests are numbered.

        Raises TxlabError for an adapter that was made by a client: that one trains it, and a fork of it is free.
        """
        view = self._find(adapter)
        client = self._serving().own_client.training_client(view.model_id)
        if client is None:
            raise TxlabError(
                f"Adapter {view.name!r} is trained by the client that made it. A copy is yours to train: "
                f"lab.training_client(lab.fork({adapter!r}, 'a name'))."
            )
        return client

    def _find(self, adapter: str) -> AdapterView:
        self._serving()
        return find_adapter(self._bus.view().adapters, adapter)

    def _tell(self, request: Request) -> Result:
        """Have the engine carry out a request, and wait for its result."""
        try:
            return self._serving().engine.ask(request).result()
        except RequestError as error:
            problem = str(error)
        raise TxlabError(problem)  # here, so that a kernel that keeps its last error does not keep the engine

    def _on_server(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the server's loop; what it refuses is the user's to know."""
        from txlab.server.futures import REFUSALS

        try:
            return self._serving().host.run(work)
        except REFUSALS as error:
            problem = str(error)
        raise TxlabError(problem)


def _checked(name: str) -> str:
    """A name as people may give it. Raises TxlabError."""
    given = name.strip() if isinstance(name, str) else ""
    seen = given.translate(JOINERS)
    if not seen or len(given) > MAX_NAME or not seen.isprintable():
        raise TxlabError(f"{shortly(name)} is no name: use one line of 1 to {MAX_NAME} visible characters.")
    return given
