"""Samples on their way: what is asked of the base and of adapters as they are now, and what each has said so far.

Drafts that begin together are decoded together, as one mixed batch: the engine batches whatever there is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from txlab.engine.bus import AdapterView
from txlab.engine.requests import (
    CancelSample,
    DropSnapshot,
    FreezeAdapter,
    RequestError,
    Result,
    Sample,
    SampleResult,
    SamplingParams,
)
from txlab.engine.validation import validate
from txlab.models.detokenizer import vocabulary_of
from txlab.notebook.adapters import alive, find_newest
from txlab.notebook.errors import TxlabError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from txlab.engine.engine import Engine

BASE = "base"


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, and how it is to be continued."""

    prompt: str
    params: SamplingParams
    samples: int = 1  # continuations by each source
    chat: bool = False  # the prompt is the user's turn of a conversation


class SamplingOptions(TypedDict, total=False):
    """Arguments of ``lab.sample`` that say how a text is continued."""

    chat: bool
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: Sequence[str | int] | None


def make_ask(
    prompt: str,
    *,
    samples: int = 1,
    chat: bool = False,
    max_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = -1,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: Sequence[str | int] | None = None,
) -> Ask:
    """An ask from arguments as ``lab.sample`` has them."""
    params = SamplingParams(max_tokens, temperature, top_k, top_p, seed, None if stop is None else tuple(stop))
    return Ask(prompt, params, samples, chat)


@dataclass(frozen=True, slots=True)
class Source:
    """Who continues a text: an adapter, or the base, which has no ``model_id``."""

    name: str = BASE
    model_id: str | None = None


def find_sources(adapters: Sequence[AdapterView], names: Iterable[str] | None) -> tuple[Source, ...]:
    """Sources by name or run id, "base" among them; None is the base and every adapter that is there.

    Of a name that several adapters have it is the newest, and a warning says so.

    Each once and under a name of its own: of namesakes, those after the first carry their run id too. Raises
    TxlabError where one is not there, or none is asked for.
    """
    if names is None:
        found = [None, *alive(adapters)]
    else:
        found = [None if name == BASE else find_newest(adapters, name) for name in names]
    if not found:
        raise TxlabError('Nobody is asked. Name adapters, or "base".')
    sources: dict[str, Source] = {}
    for adapter in dict.fromkeys(found):
        name = BASE if adapter is None else adapter.name or adapter.model_id
        if adapter is not None and (name == BASE or name in sources):
            name = f"{name} {adapter.model_id}"
        sources[name] = Source(name, None if adapter is None else adapter.model_id)
    return tuple(sources.values())


def to_request(engine: Engine, ask: Ask) -> Sample:
    """The request of an ask, of the base; one seed for whoever answers, so that only the weights make a difference.

    Raises TxlabError where the engine would refuse it.
    """
    seed = secrets.randbits(63) if ask.params.seed is None else ask.params.seed
    prompt = encode(engine.base.tokenizer, ask.prompt, ask.chat)
    request = Sample(None, prompt, ask.samples, replace(ask.params, seed=seed))
    try:
        validate(request, engine.limits)
    except RequestError as error:
        problem = str(error)
    else:
        return request
    raise TxlabError(problem)  # here, so that a kernel that keeps its last error does not keep the engine


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> np.ndarray:
    """A text's tokens, (P,) int32; with ``chat`` as the user's turn of a conversation, in the model's own layout."""
    if not chat:
        return np.array(tokenizer.encode(prompt), np.int32)
    if tokenizer.chat_template is None:
        raise TxlabError("This base model has no chat template: sample without chat.")
    turn = [{"role": "user", "content": prompt}]
    return np.array(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False), np.int32)


class Draft:
    """What one source answers. It grows on the engine thread, and may be read from any other."""

    def __init__(
        self, engine: Engine, request: Sample, source: Source, changed: Callable[[Draft], object] = lambda _: None
    ):
        """Ask ``source`` as it is now. ``changed`` is called on the engine thread: there is more, or it has ended."""
        self.source = source
        self.drawn: list[list[tuple[int, float]]] = [[] for _ in range(request.num_samples)]  # tokens, logprobs: grow
        self.cancelled = False
        self._changed = changed
        snapshot_id = None if source.model_id is None else f"lab-{secrets.token_hex(8)}"
        self._request = replace(request, snapshot_id=snapshot_id, on_tokens=self._take)
        self._frozen, self._answer = _submit(engine, self._request, source.model_id)
        self._answer.add_done_callback(lambda _: changed(self))

    @property
    def prompt(self) -> np.ndarray:
        """Tokens of what it continues, (P,) int32."""
        return self._request.prompt

    @property
    def ended(self) -> bool:
        """Whether no more will come."""
        return self._answer.done()

    @property
    def problem(self) -> str:
        """Why it failed; empty where it did not, or goes on."""
        if not self.ended:
            return ""
        error = (self._frozen and self._frozen.exception()) or self._answer.exception()
        return str(error) if error else ""

    @property
    def stop_reasons(self) -> tuple[str, ...]:
        """Why each sample ended, "stop" or "length"; empty where it goes on, or did not get so far."""
        if not self.ended or self.problem:
            return ("",) * len(self.drawn)
        return tuple(one.stop_reason for one in self.result().sequences)

    def result(self) -> SampleResult:
        """Wait for the end. Raises TxlabError where it failed, KeyboardInterrupt where the cell is interrupted."""
        with suppress(RequestError):
            result = self._answer.result()
            assert isinstance(result, SampleResult)
            return result
        raise TxlabError(f"{self.source.name}: {self.problem}")

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """What each sample says so far."""
        vocabulary = vocabulary_of(tokenizer)
        return tuple(
            "".join(vocabulary.pieces([token for token, _ in drawn], self.prompt, growing=not self.ended))
            for drawn in self.drawn
        )

    def cancel(self, engine: Engine) -> None:
        """Let it end here. What was drawn stays; where all was, this does nothing."""
        self.cancelled = not self.ended
        engine.ask(CancelSample(self._request))

    def _take(self, index: int, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        self.drawn[index] += zip(tokens.tolist(), logprobs.tolist(), strict=True)
        self._changed(self)


def wait_for(engine: Engine, drafts: Sequence[Draft]) -> tuple[SampleResult, ...]:
    """The results of all; an interrupt ends them all. Raises TxlabError where one failed."""
    try:
        return tuple(draft.result() for draft in drafts)
    except BaseException:
        for draft in drafts:
            draft.cancel(engine)
        raise


def _submit(engine: Engine, request: Sample, model_id: str | None) -> tuple[Future[Result] | None, Future[Result]]:
    """Freeze an adapter and ask it; the request keeps the frozen weights, so that they are forgotten at once."""
    if model_id is None or request.snapshot_id is None:
        return None, engine.ask(request)
    frozen = engine.ask(FreezeAdapter(model_id, request.snapshot_id))
    answer = engine.ask(request)
    engine.ask(DropSnapshot(request.snapshot_id))
    return frozen, answer
