"""The playground: a prompt to any set of adapters and the base, answered side by side in one mixed batch as it streams.

The engine's thread and the user's actions only say that there is news; one thread of the playground's own draws.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Unpack

from txlab.engine.bus import EventBus
from txlab.engine.events import AdapterCreated, AdapterRenamed, Event, StateChanged
from txlab.models.detokenizer import vocabulary_of
from txlab.notebook.board import CHARACTERS_PER_SECOND
from txlab.notebook.comparison import Comparison
from txlab.notebook.drafts import (
    BASE,
    Draft,
    SamplingOptions,
    Source,
    find_sources,
    make_ask,
    to_request,
)
from txlab.notebook.errors import TxlabError
from txlab.notebook.form import Form, read_form
from txlab.notebook.loops import running_kernel
from txlab.notebook.panel import Action, Bundle, Panel
from txlab.notebook.pins import Pins
from txlab.notebook.rounds import Round
from txlab.notebook.samples import draw
from txlab.notebook.served import LabPart, Served
from txlab.notebook.views.curves import adapter_colors
from txlab.notebook.views.playground_html import (
    DEFAULTS,
    REGIONS,
    SLIDERS,
    Choice,
    Scene,
    render_picture,
    render_regions,
    render_text,
)
from txlab.threads import daemon_thread

logger = logging.getLogger(__name__)

FRAME_SECONDS = 0.15
QUIET_SECONDS = 3.0
JOIN_SECONDS = 2.0
KEPT_ROUNDS = 20
CHOSEN = 4  # sources that are asked where nobody chooses: the base, and the first adapters


class Playground:
    """Handle of a playground on display. ``close`` leaves its answers in the notebook."""

    def __init__(self, serving: Callable[[], Served], bus: EventBus, pins: Pins):
        """Nothing is shown yet. ``serving`` raises TxlabError where the lab is stopped."""
        self._serving, self._bus, self._pins = serving, bus, pins
        self._vocabulary = vocabulary_of(serving().base.tokenizer)
        self._panel = Panel("Playground", REGIONS, self._act, self._tell)
        self._lock = threading.RLock()  # of the state: what the user chose, the rounds, the one that is shown
        self._state = Scene()
        self._met: set[str] = set()  # keys of sources that have been offered
        self._rounds: deque[Round] = deque(maxlen=KEPT_ROUNDS)
        self._shown: Round | None = None
        self._news, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._unlisten: Callable[[], None] = lambda: None

    def show(self) -> None:
        """Display the playground in the running cell; a terminal is told what to use in its place."""
        if running_kernel() is None:
            print("The playground needs a notebook. In a terminal, use lab.compare(prompt).")
            return
        scene = self._scene()
        self._panel.show(_picture(scene), **render_regions(scene))
        self._unlisten = self._bus.listen(self._hear)
        self._thread = daemon_thread(self._follow, "txlab-playground")
        self._thread.start()

    def close(self) -> None:
        """End what is being sampled, and leave the answers as they are. A second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._news.set()
        self._unlisten()
        with self._lock:
            self._stop()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
        self._panel.close(_picture(self._scene()))

    def __repr__(self) -> str:
        return render_text(self._scene())

    def _ipython_display_(self) -> None:
        """Nothing: it is on display from the start, and a cell may end with ``lab.playground()``."""

    # -------------------------------------------------------------------------------- drawing

    def _tell(self, _: object = None) -> None:
        """There is news. From any thread; never blocks."""
        self._news.set()

    def _hear(self, event: Event) -> None:
        match event:
            case AdapterCreated() | AdapterRenamed() | StateChanged(state="unloaded"):
                self._tell()

    def _follow(self) -> None:
        quiet = False
        while not self._closing.is_set():
            quiet = not self._news.wait(None if quiet else QUIET_SECONDS)
            self._news.clear()
            if not self._closing.is_set():
                self._closing.wait(self._draw(quiet))  # gather what comes meanwhile

    def _draw(self, quiet: bool) -> float:
        """Bring the page up to date, or where there is none, or nothing happens, the picture that is saved.

        Returns how many seconds to leave it as it is.
        """
        sent = 0
        try:
            scene = self._scene()
            if self._panel.alive and not quiet:
                sent = self._panel.update(**render_regions(scene))
            if quiet or not self._panel.greeted:
                self._panel.draw(_picture(scene))
        except Exception:
            logger.exception("The playground could not be drawn")  # a view that fails never fails training
        return max(FRAME_SECONDS, sent / CHARACTERS_PER_SECOND)

    def _scene(self) -> Scene:
        with self._lock:
            choices = self._choices()
            state, shown, rounds = self._state, self._shown, tuple(self._rounds)
        earlier = tuple(one.turn(self._vocabulary.pieces, state.logprobs) for one in reversed(rounds))
        current = next((turn for turn in earlier if shown is not None and turn.number == shown.number), None)
        return replace(state, choices=choices, shown=current, earlier=earlier)

    def _choices(self) -> tuple[Choice, ...]:
        """Who can be asked; of those that are new, the first few are chosen."""
        adapters = self._bus.view().adapters
        colors = adapter_colors(adapters)
        sources = find_sources(adapters, None)
        choices = tuple(Choice(one.model_id or BASE, one.name, colors.get(one.model_id or "", "")) for one in sources)
        for one in choices:
            if one.key not in self._met and len(self._state.chosen) < CHOSEN:
                self._state = replace(self._state, chosen=self._state.chosen | {one.key})
            self._met.add(one.key)
        return choices

    # --------------------------------------------------------------------------------- acting

    def _act(self, action: Action) -> None:
        """Do what the user wants. Raises TxlabError, which the panel shows."""
        with self._lock:
            form = read_form(action.fields, DEFAULTS)
            match action.name:
                case "generate":
                    self._generate(form)
                case "stop":
                    self._stop()
                case "pin":
                    self._pin(form)
                case "recall":
                    self._recall(int(action.target or 0))
                case "slide":
                    moved = {name: form.texts[name] for name in SLIDERS}
                    self._state = replace(self._state, fields={**self._state.fields, **moved})
                case "diff":
                    self._state = replace(self._state, diff=action.value == "true")
                case "logprobs":
                    self._state = replace(self._state, logprobs=action.value == "true")
        self._tell()

    def _generate(self, form: Form) -> None:
        """Ask all that are chosen at once; what is being sampled ends."""
        engine = self._serving().engine
        ask = make_ask(form.prompt, samples=form.number("samples", int), **form.options())
        asked = [one for one in self._choices() if one.key in form.sources]
        if not asked:
            raise TxlabError("Nobody is asked: choose the base, or an adapter.")
        request = to_request(engine, ask)
        self._stop()
        sources = [Source(one.name, None if one.key == BASE else one.key) for one in asked]
        drafts = tuple(Draft(engine, request, source, self._tell) for source in sources)
        number = self._rounds[-1].number + 1 if self._rounds else 1
        self._shown = Round(number, form, ask, drafts, tuple(one.color for one in asked))
        self._rounds.append(self._shown)
        self._panel.notify("")

    def _stop(self) -> None:
        """End what is being sampled."""
        with suppress(TxlabError):  # a lab that has stopped samples nothing
            engine = self._serving().engine
            for draft in (draft for one in self._rounds if one.live for draft in one.drafts):
                draft.cancel(engine)

    def _pin(self, form: Form) -> None:
        """Let the board show what becomes of a prompt: greedily, so that only training changes it, or with the seed."""
        options = form.options()
        if options["seed"] is None:
            options["temperature"] = 0.0
        number = self._pins.add(form.prompt, form.sources, every=form.number("every", int), **options)
        self._panel.notify(f"Pinned as number {number}. The board shows it; lab.pins.remove({number}) takes it off.")

    def _recall(self, number: int) -> None:
        """Show an earlier round, and fill the form in as it was then."""
        found = next((one for one in self._rounds if one.number == number), None)
        if found is not None:
            self._shown = found
            form, chosen = self._state.form + 1, frozenset(found.form.sources)
            self._state = replace(self._state, form=form, fields=found.form.texts, chosen=chosen)


def _picture(scene: Scene) -> Bundle:
    return {"text/html": render_picture(scene), "text/plain": render_text(scene)}


class Playing(LabPart):
    """Prompts tried out: side by side, and again and again while adapters train."""

    _pins: Pins | None = None
    _playground: Playground | None = None

    @property
    def pins(self) -> Pins:
        """Prompts that are sampled again every few optimizer steps; the board shows them.

        Raises TxlabError where the lab was never started.
        """
        if self._pins is None:
            self._serving()
        assert self._pins is not None
        return self._pins

    def playground(self) -> Playground:
        """Show a playground in this cell: prompts to any adapters and the base, answered side by side as they stream.

        An older playground keeps its answers. Raises TxlabError where the lab is stopped.
        """
        playground = Playground(self._serving, self._bus, self.pins)
        self._close_playground()
        self._playground = playground
        playground.show()
        return playground

    def compare(
        self,
        prompt: str,
        adapters: Iterable[str] | None = None,
        *,
        samples: int = 1,
        **sampling: Unpack[SamplingOptions],
    ) -> Comparison:
        """Continue a text with several adapters, each as it is now, and the base: all in one mixed batch.

        It waits until all is drawn. Interrupting the cell ends the samples too. Without a ``seed`` one is drawn for
        all, so that answers differ by the adapters' weights alone.

        Args:
            prompt: a text; with ``chat=True`` the user's turn of a conversation.
            adapters: names or run ids, "base" among them; None is the base and every adapter. Of a name that several
                have it is the newest, and a warning says so.
            samples: how many continuations by each.
            sampling: as for ``lab.sample``.

        Raises:
            TxlabError: the lab is stopped, there is no such adapter, or an argument is out of its range.
        """
        sources = find_sources(self._bus.view().adapters, adapters)
        answers = draw(self._serving().engine, make_ask(prompt, samples=samples, **sampling), sources)
        return Comparison(prompt, answers)

    def _close_playground(self) -> None:
        if self._playground is not None:
            self._playground.close()
