"""What one picture of the board shows: plain data, already decoded, so that drawing is a pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from txlab.engine.events import LabView, SampleCompleted

PROMPT_TOKENS = 96  # the end of a prompt says what was asked; the rest would not fit
SAMPLE_TOKENS = 192
SAMPLES = 4

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A sampled sequence as text."""

    name: str  # of the adapter, or "base"
    prompt: str
    text: str
    stop_reason: str
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of the board. ``live`` is False for the last one."""

    view: LabView
    model: str
    url: str
    excerpts: tuple[Excerpt, ...]
    live: bool = True


def make_frame(view: LabView, decode: Decode, model: str, url: str, live: bool = True) -> Frame:
    """Decode the newest samples of ``view``."""
    names = {adapter.model_id: adapter.name or adapter.model_id for adapter in view.adapters}
    excerpts = tuple(_excerpt(sample, names, decode) for sample in view.samples[:SAMPLES])
    return Frame(view, model, url, excerpts, live)


def _excerpt(sample: SampleCompleted, names: dict[str, str], decode: Decode) -> Excerpt:
    cut = len(sample.prompt) > PROMPT_TOKENS
    prompt = decode(sample.prompt[-PROMPT_TOKENS:].tolist())
    text = decode(sample.tokens[:SAMPLE_TOKENS].tolist())
    return Excerpt(
        name="base" if sample.model_id is None else names.get(sample.model_id, sample.model_id),
        prompt="…" + prompt if cut else prompt,
        text=text + "…" if len(sample.tokens) > SAMPLE_TOKENS else text,
        stop_reason=sample.stop_reason,
        tokens=len(sample.tokens),
        seconds=sample.seconds,
    )
