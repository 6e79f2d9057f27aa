"""What one picture of the board shows: plain data, already decoded, so that drawing is a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args

from txlab.engine.bus import LOSS, LabView, LiveSample
from txlab.engine.events import SampleCompleted
from txlab.models.detokenizer import Tokens
from txlab.notebook.errors import TxlabError

PROMPT_TOKENS = 96  # the end of a prompt says what was asked; the rest would not fit
SAMPLE_TOKENS = 192
SAMPLES = 6
MAX_SMOOTHING = 0.99

XKind = Literal["step", "tokens", "time"]
LOG_CHOICES = {"auto": None, "linear": False, "log": True}


class Decode(Protocol):
    """Turns tokens into text, as the engine's vocabulary does."""

    def __call__(
        self, tokens: Tokens, prompt: Tokens = (), *, special: bool = False, growing: bool = False
    ) -> list[str]:
        """Text that each token adds after ``prompt``; half a character at the end of a growing text is left out."""


@dataclass(frozen=True, slots=True)
class BoardOptions:
    """What a reader chose to see. ``log`` None: where it shows more.

    ``hidden`` are model ids without a curve, ``opened`` those of which all that can be done is shown.
    """

    metric: str = LOSS
    x: XKind = "step"
    smoothing: float = 0.0  # weight of the past in the moving average, 0..MAX_SMOOTHING
    log: bool | None = None
    logprobs: bool = False  # colour sampled tokens by their log probability
    hidden: frozenset[str] = frozenset()
    opened: frozenset[str] = frozenset()

    @classmethod
    def of(cls, metric: str, x: str, smoothing: float, scale: str, logprobs: bool) -> BoardOptions:
        """Options as a user writes them; ``scale`` is one of LOG_CHOICES. Raises TxlabError, with the choices."""
        if not (isinstance(metric, str) and metric):
            raise TxlabError(f"metric is {metric!r}: expected the name of a curve, such as {LOSS!r}.")
        if not (isinstance(smoothing, int | float) and 0 <= smoothing <= MAX_SMOOTHING):
            raise TxlabError(f"smoothing is {smoothing!r}: expected a number from 0 to {MAX_SMOOTHING:g}.")
        _check_choice("x", x, get_args(XKind))
        _check_choice("scale", scale, tuple(LOG_CHOICES))
        return cls(metric, x, smoothing, LOG_CHOICES[scale], logprobs)  # type: ignore[arg-type]

    def changed(self, setting: str, value: str | None, target: str | None = None) -> BoardOptions:
        """These options after a reader used a control; as they are where that makes no sense."""
        match setting:
            case "metric" if value:
                return replace(self, metric=value)
            case "x" if value in get_args(XKind):
                return replace(self, x=value)  # type: ignore[arg-type]
            case "smoothing":
                return replace(self, smoothing=_smoothing(value, self.smoothing))
            case "log" if value in LOG_CHOICES:
                return replace(self, log=LOG_CHOICES[value])
            case "logprobs":
                return replace(self, logprobs=not self.logprobs)
            case "hide" if target:
                return replace(self, hidden=self.hidden ^ {target})
            case "more" if target:
                return replace(self, opened=self.opened ^ {target})
        return self


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise TxlabError(f"{name} is {value!r}: expected {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}.")


def _smoothing(value: str | None, present: float) -> float:
    try:
        wanted = float(value or "")
    except ValueError:
        return present
    return min(max(wanted, 0.0), MAX_SMOOTHING) if wanted == wanted else present


@dataclass(frozen=True, slots=True)
class PinView:
    """A prompt that is sampled again and again; ``texts`` are (adapter's name, its step, text), newest first."""

    number: int
    prompt: str
    texts: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A sampled sequence as text; one that is being sampled has no stop reason yet."""

    name: str  # of the adapter, or "base"
    prompt: str
    text: str
    stop_reason: str
    tokens: int
    seconds: float | None
    model_id: str | None = None  # None is the base
    pieces: tuple[tuple[str, float], ...] = ()  # the text by token, each with its logprob, where these are asked for

    @property
    def live(self) -> bool:
        """Whether tokens are still drawn."""
        return not self.stop_reason


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of the board. ``live`` is False for the last one; ``notice`` is what the last action came to."""

    view: LabView
    model: str
    url: str
    excerpts: tuple[Excerpt, ...]
    live: bool = True
    options: BoardOptions = field(default_factory=BoardOptions)
    pins: tuple[PinView, ...] = ()
    notice: str = ""


def make_frame(
    view: LabView,
    decode: Decode,
    model: str,
    url: str,
    live: bool = True,
    options: BoardOptions | None = None,
    pins: tuple[PinView, ...] = (),
    notice: str = "",
) -> Frame:
    """Decode the newest samples of ``view``, those that are being drawn first of all."""
    options = options or BoardOptions()
    names = {adapter.model_id: adapter.name or adapter.model_id for adapter in view.adapters}
    samples: list[SampleCompleted | LiveSample] = list(view.streaming if live else ())
    samples += view.samples
    excerpts = tuple(_excerpt(sample, names, decode, options.logprobs) for sample in samples[:SAMPLES])
    return Frame(view, model, url, excerpts, live, options, pins, notice)


def _excerpt(sample: SampleCompleted | LiveSample, names: dict[str, str], decode: Decode, logprobs: bool) -> Excerpt:
    """The end of the prompt, and the text's beginning; of one that grows, the end."""
    ended = sample if isinstance(sample, SampleCompleted) else None
    prompt = "".join(decode(sample.prompt[-PROMPT_TOKENS:], sample.prompt[:-PROMPT_TOKENS], special=True))
    drawn = len(sample.tokens) if isinstance(sample, SampleCompleted) else sample.drawn
    cut = drawn > SAMPLE_TOKENS
    start = max(0, len(sample.tokens) - SAMPLE_TOKENS) if not ended else 0
    shown = slice(start, start + SAMPLE_TOKENS)
    earlier = sample.tokens[:start] if start or drawn > len(sample.tokens) else sample.prompt
    said = decode(sample.tokens[shown], earlier, growing=cut or not ended)
    text = "".join(said)
    pieces = tuple(zip(said, sample.logprobs[shown].tolist(), strict=True)) if logprobs else ()
    before, after = ("" if ended or not cut else "…", "…" if ended and cut else "")
    if pieces and cut:
        pieces = ((before, 0.0), *pieces) if before else (*pieces, (after, 0.0))
    return Excerpt(
        name="base" if sample.model_id is None else names.get(sample.model_id, sample.model_id),
        prompt="…" + prompt if len(sample.prompt) > PROMPT_TOKENS else prompt,
        text=before + text + after,
        stop_reason=ended.stop_reason if ended else "",
        tokens=drawn,
        seconds=ended.seconds if ended else None,
        model_id=sample.model_id,
        pieces=pieces,
    )
