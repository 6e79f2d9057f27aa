"""Pinned prompts: sampled again every few optimizer steps, so that one sees outputs change while adapters train.

Nothing polls: the bus tells of a step on the engine's thread, whose next deed is to freeze these very weights.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Unpack

from txlab.engine.bus import EventBus
from txlab.engine.events import AdapterCreated, AdapterRenamed, AdapterRewound, Event, StateChanged, StepCompleted
from txlab.engine.requests import Sample
from txlab.notebook.drafts import BASE, Draft, SamplingOptions, Source, find_sources, make_ask, to_request
from txlab.notebook.errors import TxlabError
from txlab.notebook.views.frame import PinView
from txlab.notebook.views.text import flat

if TYPE_CHECKING:
    from txlab.engine.engine import Engine

MAX_PINS = 16
KEPT_TEXTS = 32  # of a pin and source


@dataclass(slots=True, eq=False)
class _Track:
    """What one source said to a pin: (number, step, text), newest first, and what it is saying."""

    texts: deque[tuple[int, int, str]] = field(default_factory=lambda: deque(maxlen=KEPT_TEXTS))
    draft: Draft | None = None


@dataclass(slots=True, eq=False)
class _Pin:
    """A prompt, and whom it is for: those of ``only``, or where that is None every adapter, the base and later ones."""

    number: int
    prompt: str
    request: Sample  # with a seed, so that nothing but the weights changes
    every: int
    only: frozenset[str | None] | None
    tracks: dict[str | None, _Track] = field(default_factory=dict)  # by model id; None is the base


class Pins:
    """The pinned prompts of a lab. Methods may be called from any thread."""

    def __init__(self, bus: EventBus, engine: Engine):
        self._bus = bus
        self._engine: Engine | None = engine  # None once closed
        self._lock = threading.RLock()  # an engine that has stopped answers in the middle of an ask
        self._pins: dict[int, _Pin] = {}
        self._names: dict[str | None, str] = {None: BASE}
        self._numbers, self._order = count(1), count()
        self._unlisten = bus.listen(self._hear)

    def add(
        self,
        prompt: str,
        adapters: Iterable[str] | None = None,
        *,
        every: int = 10,
        **sampling: Unpack[SamplingOptions],
    ) -> int:
        """Sample a prompt now and at every step of an adapter that ``every`` divides; the number of the pin.

        An adapter that has not answered yet is not asked again: slow sampling leaves steps out. The base, which does
        not change, answers once.

        Args:
            prompt: a text; with ``chat=True`` the user's turn of a conversation.
            adapters: names or run ids, "base" among them; None is the base and all adapters, also later ones. Of a
                name that several have it is the newest, and a warning says so.
            every: optimizer steps between two samples.
            sampling: as for ``lab.sample``. Left out, it is greedy and of 48 tokens; there is always a fixed seed.

        Raises:
            TxlabError: the lab is stopped, there is no such adapter, an argument is out of its range, or there are
                MAX_PINS pins already.
        """
        if every < 1:
            raise TxlabError(f"every is {every}: expected at least one optimizer step.")
        known = self._bus.view().adapters
        sources = find_sources(known, None if adapters is None else list(adapters))
        steps = {adapter.model_id: adapter.step for adapter in known}
        greedy: SamplingOptions = {"max_tokens": 48, "temperature": 0.0}
        options: SamplingOptions = {**greedy, **sampling}
        asked = to_request(self._running(), make_ask(prompt, samples=1, **options))
        request = replace(asked, announced=False)  # a board shows pins in a place of their own
        only = None if adapters is None else frozenset(source.model_id for source in sources)
        with self._lock:
            if len(self._pins) >= MAX_PINS:
                raise TxlabError(f"There are {MAX_PINS} pins already. Remove one first: lab.pins.remove(number).")
            pin = _Pin(next(self._numbers), prompt, request, every, only)
            self._pins[pin.number] = pin
            for source in sources:
                self._names.setdefault(source.model_id, source.name)
                self._ask(pin, source.model_id, steps.get(source.model_id or "", 0))
        self._bus.wake()
        return pin.number

    def remove(self, number: int) -> None:
        """Forget a pin and what was said to it. Raises TxlabError where there is none of that number."""
        with self._lock:
            pin = self._pins.pop(number, None)
            there = ", ".join(map(str, self._pins)) or "none"
        if pin is None:
            raise TxlabError(f"There is no pin {number}. Pins: {there}.")
        self._bus.wake()

    def view(self) -> tuple[PinView, ...]:
        """Every pin with its texts, newest first."""
        with self._lock:
            return tuple(PinView(pin.number, pin.prompt, self._texts(pin)) for pin in self._pins.values())

    def close(self) -> None:
        """End the sampling; what was said stays. A second call does nothing."""
        self._unlisten()
        with self._lock:
            self._engine = None

    def __repr__(self) -> str:
        return "\n".join(map(_described, self.view())) or "no pins yet: lab.pins.add(prompt) makes one"

    def _running(self) -> Engine:
        if self._engine is None:
            raise TxlabError("This lab is stopped. Start it with %txserve or txlab.serve().")
        return self._engine

    def _texts(self, pin: _Pin) -> tuple[tuple[str, int, str], ...]:
        said = [(order, self._names[one], step, text) for one, t in pin.tracks.items() for order, step, text in t.texts]
        return tuple((name, step, text) for _, name, step, text in sorted(said, reverse=True))

    # ------------------------------------------------------------------------ engine thread

    def _hear(self, event: Event) -> None:
        with self._lock:
            match event:
                case AdapterCreated(model_id, name):
                    self._names[model_id] = name or model_id
                    self._ask_all(model_id, event.step)
                case AdapterRenamed(model_id, name):
                    self._names[model_id] = name
                case StepCompleted(model_id, step):
                    self._ask_all(model_id, step)
                case AdapterRewound(model_id, step):
                    self._rewind(model_id, step)
                case StateChanged(model_id, "unloaded"):
                    self._forget(model_id)

    def _ask_all(self, model_id: str, step: int) -> None:
        for pin in self._pins.values():
            if step % pin.every == 0 and (pin.only is None or model_id in pin.only):
                self._ask(pin, model_id, step)

    def _ask(self, pin: _Pin, model_id: str | None, step: int) -> None:
        track = pin.tracks.setdefault(model_id, _Track())
        if track.draft is None and self._engine is not None:
            source = Source(self._names[model_id], model_id)
            track.draft = Draft(self._engine, pin.request, source, partial(self._take, track, step))

    def _take(self, track: _Track, step: int, draft: Draft) -> None:
        """Keep what a draft says once it has ended; one of weights that were taken back is nobody's."""
        if not draft.ended:
            return
        with self._lock:
            if track.draft is not draft:
                return
            track.draft = None
            if self._engine is not None and not draft.problem:
                track.texts.appendleft((next(self._order), step, draft.texts(self._engine.base.tokenizer)[0]))
        self._bus.wake()

    def _rewind(self, model_id: str, step: int) -> None:
        """Forget what an adapter said at later steps, and let go of what it is saying."""
        for pin in self._pins.values():
            if track := pin.tracks.get(model_id):
                kept = [text for text in track.texts if text[1] <= step]
                track.texts, track.draft = deque(kept, KEPT_TEXTS), None

    def _forget(self, model_id: str) -> None:
        for pin in self._pins.values():
            pin.tracks.pop(model_id, None)
        self._names.pop(model_id, None)


def _described(pin: PinView) -> str:
    lines = [f"{pin.number} · {flat(pin.prompt)}"]
    lines += [f"    {name}, step {step}: {flat(text)}" for name, step, text in pin.texts]
    return "\n".join(lines)
