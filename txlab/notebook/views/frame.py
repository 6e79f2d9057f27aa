"""What one picture of the board shows: plain data, already decoded, so that drawing is a pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from txlab.engine.bus import LabView, LiveSample
from txlab.engine.events import SampleCompleted

PROMPT_TOKENS = 96  # the end of a prompt says what was asked; the rest would not fit
SAMPLE_TOKENS = 192
SAMPLES = 4

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A sampled sequence as text; one that is being sampled has no stop reason yet."""

    name: str  # of the adapter, or "base"
    prompt: str
    text: str
    stop_reason: str
    tokens: int
    seconds: float | None

    @property
    def live(self) -> bool:
        """Whether tokens are still drawn."""
        return not self.stop_reason


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of the board. ``live`` is False for the last one."""

    view: LabView
    model: str
    url: str
    excerpts: tuple[Excerpt, ...]
    live: bool = True


def make_frame(view: LabView, decode: Decode, model: str, url: str, live: bool = True) -> Frame:
    """Decode the newest samples of ``view``, those that are being drawn first of all."""
    names = {adapter.model_id: adapter.name or adapter.model_id for adapter in view.adapters}
    samples: list[SampleCompleted | LiveSample] = list(view.streaming if live else ())
    samples += view.samples
    return Frame(view, model, url, tuple(_excerpt(sample, names, decode) for sample in samples[:SAMPLES]), live)


def _excerpt(sample: SampleCompleted | LiveSample, names: dict[str, str], decode: Decode) -> Excerpt:
    """The end of the prompt, and the text's beginning; of one that grows, the end."""
    ended = sample if isinstance(sample, SampleCompleted) else None
    prompt = decode(sample.prompt[-PROMPT_TOKENS:].tolist())
    shown = sample.tokens[:SAMPLE_TOKENS] if ended else sample.tokens[-SAMPLE_TOKENS:]
    text, cut = decode(shown.tolist()), len(sample.tokens) > SAMPLE_TOKENS
    return Excerpt(
        name="base" if sample.model_id is None else names.get(sample.model_id, sample.model_id),
        prompt="…" + prompt if len(sample.prompt) > PROMPT_TOKENS else prompt,
        text=(text + "…" if ended else "…" + text) if cut else text,
        stop_reason=ended.stop_reason if ended else "",
        tokens=len(sample.tokens),
        seconds=ended.seconds if ended else None,
    )
