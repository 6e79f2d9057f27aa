"""The lab: a base model, its engine and the Tinker API over it, in this process. Every magic is a thin call of it."""

from __future__ import annotations

import atexit
import gc
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from txlab.config import ServerSettings, Settings
from txlab.engine.bus import LOSS, EventBus, LabView
from txlab.models.detokenizer import vocabulary_of
from txlab.notebook.access import Access
from txlab.notebook.board import Board, Boards
from txlab.notebook.controls import Controls
from txlab.notebook.datums import Faces
from txlab.notebook.errors import TxlabError
from txlab.notebook.exchange import Exchange
from txlab.notebook.forks import in_forked_child, quiet_shell_commands
from txlab.notebook.history import Histories, keep_history
from txlab.notebook.host import Host
from txlab.notebook.imports import whole_imports
from txlab.notebook.interrupts import Interrupts
from txlab.notebook.logs import LogBuffer, Logs
from txlab.notebook.loops import choose_loop
from txlab.notebook.losses import OwnLosses
from txlab.notebook.own_client import OwnClient
from txlab.notebook.pins import Pins
from txlab.notebook.playground import Playing
from txlab.notebook.preparation import Predecessor, Prepared, load_weights, prepare
from txlab.notebook.report import Reports
from txlab.notebook.runs import Inventory
from txlab.notebook.samples import Sampling
from txlab.notebook.sdk_environment import SdkEnvironment
from txlab.notebook.served import Served
from txlab.notebook.served_tokenizer import served_tokenizer
from txlab.notebook.steering import board_controls
from txlab.notebook.stopped import StopSign, any_sign, farewell, free_port
from txlab.notebook.texts import Text
from txlab.notebook.views.frame import BoardOptions
from txlab.notebook.views.status_html import lab_html, status_html, stopped_html
from txlab.notebook.views.text import render_table
from txlab.proxy import announce

if TYPE_CHECKING:
    from txlab.models.base import BaseModel


class Lab(Access, OwnLosses, Sampling, Exchange, Reports, Faces, Histories, Controls, Inventory, Playing):
    """A running server and what it serves. Made by ``txlab.serve(...)`` or ``%txserve``.

    ``Lab.current`` is the one that runs in this process, None where none does.
    """

    current: ClassVar[Lab | None] = None

    def __init__(self, settings: Settings, loop: str = "auto"):
        """A lab that does nothing until ``start``. Raises TxlabError where ``loop`` cannot be had in this process."""
        self.settings = settings
        self.loop = choose_loop(loop)
        self.url = ""
        self.api_key = ""
        self.follows_another = False  # whether clients of a lab that was stopped in this process may be left
        self._sdk_means = ""
        self._log = LogBuffer()
        self._bus = EventBus()
        self._boards = Boards()
        self._started = 0.0
        self._stack = ExitStack()

    # -------------------------------------------------------------------------- start and stop

    def start(self, replacing: Lab | None = None) -> Lab:
        """Load the model and serve it; returns when the server answers.

        The running lab goes, where it is ``replacing``, once all but the weights is known to be right. Raises
        TxlabError where another lab runs, the port is taken or the model cannot be had; nothing is left open. So does
        an interrupt, which waits until imports are whole.
        """
        if Lab.current is not None and Lab.current is not replacing:
            raise TxlabError(f"txlab already serves {Lab.current.model} in this process. Stop that lab first.")
        with whole_imports() as interrupts, ExitStack() as stack:
            self._open(stack, replacing, interrupts)
            interrupts.check()
            stack.enter_context(in_forked_child(self._leave_to_parent))
            stack.callback(self._forget)
            self._stack = stack.pop_all()
            self._started = time.monotonic()
            Lab.current = self
            atexit.register(self.stop, keep_port=False)
        quiet_shell_commands()
        return self

    def stop(self, *, keep_port: bool = True) -> Text:
        """End the server, free the device memory, freeze the board. A second call does nothing.

        Clients of the lab, here and in other kernels, are told from then on to be made anew: that takes its port, which
        goes to the next lab, and is free with ``keep_port=False`` (also in a later call) or when this process ends.

        Returns what is left, in words: of the port, and of what ``ServiceClient()`` means now.
        """
        if not self.running:
            if not keep_port and self.port:
                free_port(self.port)
            return Text(f"txlab: {self.model}, stopped")
        listener = self._serving().host.listener
        sign = StopSign(self.settings.server.host, listener.dup(), self.api_key) if keep_port else None
        with ExitStack() as stack:
            if sign is not None:
                stack.callback(sign.put_up)
            self._stack.close()
        gc.collect()  # engine and server know each other; the next lab counts on their memory
        return Text(f"{farewell(self.url, sign)}\n{self._sdk_means}")

    def _open(self, stack: ExitStack, replacing: Lab | None, interrupts: Interrupts) -> None:
        old = None if replacing is None else replacing._as_predecessor()
        prepared = prepare(self.settings, stack, old, interrupts)
        if replacing is not None:
            interrupts.check()  # the last moment at which it costs nothing
            replacing.stop()
        stack.enter_context(self._log.capture())
        with interrupts.allowed():
            base = load_weights(prepared.opened)
        self._tokenizer = base.tokenizer
        self.api_key = prepared.api_key
        host, port = self.settings.server.host, prepared.listener.getsockname()[1]
        self.url = f"http://{_in_url(host)}:{port}"
        server = replace(self.settings.server, port=port, api_key=self.api_key)
        self._served = self._launch(base, prepared, server, stack)
        self.follows_another = any_sign()
        free_port(port)  # of the sign that stood there: from here on the lab answers
        self._pins = Pins(self._bus, self._served.engine)
        stack.callback(self._pins.close)
        stack.enter_context(served_tokenizer(self.model, base.tokenizer_dir))
        self._key_is_kept = stack.enter_context(announce(self.url, self.api_key))
        variables = SdkEnvironment(self.url, self.api_key)
        variables.point()
        stack.callback(self._release, variables)

    def _as_predecessor(self) -> Predecessor:
        """Listener, key and memory that the replacing lab takes over."""
        served = self._serving()
        freed = max(served.base.memory_bytes, self._bus.view().load.device_bytes)
        return Predecessor(self.settings.server.host, served.host.listener, self.api_key, freed)

    def _launch(self, base: BaseModel, prepared: Prepared, server: ServerSettings, stack: ExitStack) -> Served:
        """Start the engine of a model and the API over it."""
        from txlab.engine.engine import Engine
        from txlab.server.app import create_app

        engine = Engine(base, self.settings.engine, self._bus)
        store = prepared.store  # closed after the server, which records how its sessions end
        stack.callback(keep_history(self._bus, store.records))
        app = create_app(engine, store, server)
        host = Host(app, prepared.listener, self.loop, before_stop=app.state.server.close)
        host.start()
        stack.callback(host.stop)
        stack.callback(engine.stop)  # before the host stops: held requests are answered, not cut off
        engine.start()
        if self.settings.engine.warm_up:
            engine.warm_up()
        own_client = OwnClient(self.url, self.api_key)
        stack.callback(own_client.close)
        return Served(base, engine, store, app.state.server, host, own_client)

    def _release(self, variables: SdkEnvironment) -> None:
        self._sdk_means = variables.release()

    def _forget(self) -> None:
        self._boards.close()
        self._close_playground()
        self._served = None
        Lab.current = None
        atexit.unregister(self.stop)

    def _leave_to_parent(self) -> None:
        """Be a stopped lab, in a forked child: everything that this one holds is its parent's."""
        self._inherited = self._served, self._stack  # kept, as to end them would end what the parent has
        self._served, self._stack = None, ExitStack()
        Lab.current = None
        atexit.unregister(self.stop)

    # -------------------------------------------------------------------------------- looking

    @property
    def model(self) -> str:
        """The base model, as it was asked for."""
        return self.settings.model.name

    @property
    def running(self) -> bool:
        """Whether the server answers."""
        return Lab.current is self

    def status(self) -> Status:
        """What runs and what it does, at this moment."""
        seconds = time.monotonic() - self._started if self.running else 0.0
        batches = (0, 0) if self._served is None else self._served.engine.micro_batches
        return Status(self.running, self.model, self.url, self.loop, seconds, self._bus.view(), *batches)

    def profile(self, rows: int = 8, length: int = 128, rank: int = 32, keep: str | Path | None = None) -> Text:
        """Take a training step apart: a report of where its time goes.

        The step is ``rows`` sequences of ``length`` random tokens with an adapter of its own, which is gone
        afterwards. It takes its turn among the requests of others; what they compute meanwhile is in the report.

        ``keep`` is a folder for the trace, which Perfetto and XProf show. Raises TxlabError where the lab is stopped,
        the step is too large for it, or this process is being traced already.
        """
        from txlab.engine.requests import RequestError
        from txlab.profiling.profile import run_profile
        from txlab.profiling.report import render_profile
        from txlab.profiling.workload import StepShape

        folder = None if keep is None else Path(keep).expanduser()
        try:
            return Text(render_profile(run_profile(self._serving().engine, StepShape(rows, length, rank), folder)))
        except (RequestError, RuntimeError) as error:
            problem = str(error)
        raise TxlabError(problem)  # here, so that a kernel that keeps its last error does not keep the engine

    def logs(self, count: int = 50) -> Logs:
        """The last ``count`` lines of the server's log."""
        return self._log.tail(count)

    def board(
        self,
        metric: str = LOSS,
        *,
        x: str = "step",
        smoothing: float = 0.0,
        scale: str = "auto",
        logprobs: bool = False,
    ) -> Board:
        """Show a live board in this cell, with controls that act also while a cell runs.

        Some boards live side by side; an older one keeps its last picture. The arguments are what its settings are at
        first.

        Args:
            metric: the curve that is shown, one of ``lab.log`` too, also before it has a point.
            x: what the curve is over: "step", "tokens" (trained until then) or "time".
            smoothing: weight of the past in the moving average, 0 to 0.99.
            scale: "linear", "log", or "auto": where it shows more.
            logprobs: shade the tokens of samples by how unlikely they were.

        Raises:
            TxlabError: the lab is stopped, or an argument is none of its choices.
        """
        options = BoardOptions.of(metric, x, smoothing, scale, logprobs)
        vocabulary = vocabulary_of(self._serving().base.tokenizer)
        controls = board_controls(self, self.pins)
        board = Board(
            self._bus,
            vocabulary.pieces,
            self.model,
            self.url,
            controls,
            self.pins.view,
            options,
        )
        self._boards.show(board)
        return board

    def __repr__(self) -> str:
        return (
            f"Lab({self.model!r}, {self.url!r}, loop={self.loop!r})"
            if self.running
            else f"Lab({self.model!r}, stopped)"
        )

    def _repr_html_(self) -> str:
        return lab_html(self.model, self.url, self.loop, self.exports()) if self.running else stopped_html(self.model)


@dataclass(frozen=True, slots=True)
class Status:
    """A lab at one moment; ``view`` has every adapter."""

    running: bool
    model: str
    url: str
    loop: str
    seconds: float  # since the server answers
    view: LabView
    train_streams: int  # micro-batches that run side by side
    train_tokens: int  # of each, whose activations are kept for a backward pass

    def __repr__(self) -> str:
        if not self.running:
            return f"txlab: {self.model}, stopped"
        return "\n".join([*self._lines(), render_table(self.view.adapters)])

    def _repr_html_(self) -> str:
        return status_html(self._lines(), self.view) if self.running else stopped_html(self.model)

    def _lines(self) -> list[str]:
        head = f"txlab serves {self.model} at {self.url} ({self.loop} loop) for {self.seconds:.0f} s"
        compiles = f"{self.view.compiles} programs compiled in {self.view.compile_seconds:.1f} s"
        beside = f", {self.train_streams} side by side" if self.train_streams > 1 else ""
        batches = f"micro-batches of up to {self.train_tokens} tokens{beside}{self._padding()}"
        return [head, f"{compiles}; {batches}"]

    def _padding(self) -> str:
        if not self.view.trained_positions:
            return ""
        return f", {1 - self.view.trained_tokens / self.view.trained_positions:.0%} padding so far"


def serve(
    model: str | None = None,
    *,
    port: int = 0,
    api_key: str | None = None,
    loop: str = "auto",
    root: str | Path | None = None,
    restart: bool = False,
    settings: Settings | None = None,
) -> Lab:
    """Serve ``model`` from this process and point the Tinker SDK to it; the running lab where it already does.

    The same call twice gives the same lab, so that Run All is harmless, and ``serve()`` gives whatever lab runs.
    Arguments that differ from the running lab's raise TxlabError: a new server would forget its adapters, and that
    happens only with ``restart=True``.

    Args:
        model: a Hugging Face name or a local folder; None is the default model.
        port: 0 is any free one; the one of a lab that was stopped in this process before, with its key.
        api_key: None is ``$TXLAB_API_KEY``, else a random ``tml-`` key. The file that ``txlab key`` reads has it.
        loop: ``control`` (the kernel's control loop), ``main`` (the loop of the cells), ``thread``; ``auto`` is
            ``control`` in a kernel and ``thread`` elsewhere.
        root: folder of the checkpoints.
        restart: replace a running lab. It goes on where the new one cannot be had, as far as that shows before its
            weights are read; its port and key stay unless others are asked for.
        settings: everything else; the arguments above win.

    Raises:
        TxlabError: with what to do about it.
    """
    wanted = _settings(settings or Settings(), model, port, api_key, root)
    running = Lab.current
    if running is not None and not restart:
        asked = {"model": model, "port": port or None, "api_key": api_key, "loop": loop if loop != "auto" else None}
        _check_same(running, asked, wanted if settings or root else None)
        return running
    started = time.monotonic()
    lab = Lab(wanted, loop)
    try:
        lab.start(replacing=running)
    except BaseException as error:
        if running is not None and not running.running:
            error.add_note(f"The lab that served {running.model} is stopped: adapters that were not saved are gone.")
        raise
    if lab.follows_another:
        print("The earlier lab is gone, and its clients do not work with this one: make a new tinker.ServiceClient().")
    print(f"txlab serves {lab.model} at {lab.url} (ready in {time.monotonic() - started:.1f} s). In a terminal:")
    print(lab.exports())
    return lab


def _settings(base: Settings, model: str | None, port: int, api_key: str | None, root: str | Path | None) -> Settings:
    """``base`` with the given arguments in place of its own."""
    if model is not None:
        base = replace(base, model=replace(base.model, name=model))
    if port:
        base = replace(base, server=replace(base.server, port=port))
    if api_key is not None:
        base = replace(base, server=replace(base.server, api_key=api_key))
    if root is not None:
        base = replace(base, store=replace(base.store, root=Path(root).expanduser()))
    return base


def _check_same(running: Lab, asked: Mapping[str, object], wanted: Settings | None) -> None:
    """Raise TxlabError where what was asked for (not None) is not what runs."""
    have = {"model": running.model, "port": running.port, "api_key": running.api_key, "loop": running.loop}
    differ = [name for name, value in asked.items() if value is not None and value != have[name]]
    differ = ["another key" if name == "api_key" else f"{name}={asked[name]}" for name in differ]
    if wanted is not None and wanted != running.settings:
        differ.append("other settings")
    if differ:
        raise TxlabError(
            f"txlab already serves {running.model} at {running.url}; you asked for {', '.join(differ)}. "
            "Add --restart (restart=True) to replace it; adapters that were not saved are lost then."
        )


def _in_url(host: str) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
