"""Samples asked for in a cell: straight from the engine, by an adapter's name, without a client."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, overload

import numpy as np

from txlab.engine.bus import AdapterView
from txlab.engine.requests import (
    CancelSample,
    DropSnapshot,
    FreezeAdapter,
    RequestError,
    Sample,
    SampledSequence,
    SampleResult,
    SamplingParams,
)
from txlab.engine.validation import validate
from txlab.notebook.adapters import find_adapter
from txlab.notebook.errors import TxlabError
from txlab.notebook.served import LabPart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from txlab.engine.engine import Engine

BASE = "base"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere"


@dataclass(frozen=True, slots=True, eq=False)
class Samples(Sequence[str]):
    """Continuations of one prompt, a sequence of texts; ``drawn`` has their tokens, logprobs and stop reasons."""

    adapter: str  # its name, or "base"
    prompt: str
    texts: tuple[str, ...]
    drawn: tuple[SampledSequence, ...]

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.texts[index]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return "\n".join(f"{note}\n{text}" for note, text in zip(self._notes(), self.texts, strict=True))

    def _repr_html_(self) -> str:
        """The prompt dimmed before each continuation."""
        blocks = (
            f'<div style="margin:0 0 .8em"><small style="opacity:.7">{escape(note)}</small><div style="{_TEXT}">'
            f'<span style="opacity:.6">{escape(self.prompt)}</span><b>{escape(text)}</b></div></div>'
            for note, text in zip(self._notes(), self.texts, strict=True)
        )
        return f'<div role="group" aria-label="samples of {escape(self.adapter)}">{"".join(blocks)}</div>'

    def _notes(self) -> list[str]:
        return [f"{self.adapter} · {len(one.tokens)} tokens · {one.stop_reason}" for one in self.drawn]


class Sampling(LabPart):
    """Texts straight from the engine."""

    def sample(
        self,
        prompt: str,
        adapter: str | None = None,
        *,
        samples: int = 1,
        chat: bool = False,
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = -1,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str | int] | None = None,
    ) -> Samples:
        """Continue a text with an adapter as it is now, while it trains or not; without one, with the base.

        It waits until all is drawn. Interrupting the cell ends the samples too.

        Args:
            prompt: a text; with ``chat`` the user's turn of a conversation.
            adapter: its name or run id; None or "base" is the base.
            samples: how many continuations.
            chat: lay the prompt out with the model's chat template.
            max_tokens: tokens of each, at most.
            temperature: 0 is greedy.
            top_k: draw from so many of the likeliest tokens only; -1: all.
            top_p: draw from the likeliest tokens that have this probability together.
            seed: the same one gives the same texts.
            stop: texts or token ids that end a sample; None is the model's own end.

        Raises:
            TxlabError: the lab is stopped, there is no such adapter, or an argument is out of its range.
        """
        params = SamplingParams(max_tokens, temperature, top_k, top_p, seed, None if stop is None else tuple(stop))
        return draw(self._serving().engine, self._bus.view().adapters, prompt, adapter, samples, params, chat)


def draw(
    engine: Engine,
    adapters: Sequence[AdapterView],
    prompt: str,
    adapter: str | None,
    samples: int,
    params: SamplingParams,
    chat: bool = False,
) -> Samples:
    """Sample from an adapter as it is at this moment, or from the base, and wait; an interrupt frees its rows.

    Raises TxlabError where there is no such adapter, or the engine refuses the request.
    """
    tokenizer = engine.base.tokenizer
    known = None if adapter in (None, BASE) else find_adapter(adapters, str(adapter))
    snapshot_id = None if known is None else f"lab-{secrets.token_hex(8)}"
    request = Sample(snapshot_id, encode(tokenizer, prompt, chat), samples, params)
    try:
        validate(request, engine.limits)
        if known is not None and snapshot_id is not None:
            engine.ask(FreezeAdapter(known.model_id, snapshot_id)).result()
        result = _sampled(engine, request)
    except RequestError as error:
        problem = str(error)
    else:
        texts = tuple(str(tokenizer.decode(one.tokens, skip_special_tokens=True)) for one in result.sequences)
        return Samples(known.name if known else BASE, prompt, texts, result.sequences)
    finally:
        if snapshot_id is not None:
            engine.ask(DropSnapshot(snapshot_id))
    raise TxlabError(problem)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> np.ndarray:
    """A text's tokens, (P,) int32; with ``chat`` as the user's turn of a conversation, in the model's own layout."""
    if not chat:
        return np.array(tokenizer.encode(prompt), np.int32)
    if tokenizer.chat_template is None:
        raise TxlabError("This base model has no chat template: sample without chat.")
    turn = [{"role": "user", "content": prompt}]
    return np.array(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False), np.int32)


def _sampled(engine: Engine, request: Sample) -> SampleResult:
    future = engine.ask(request)
    try:
        result = future.result()
    except KeyboardInterrupt:
        engine.ask(CancelSample(request))
        raise
    assert isinstance(result, SampleResult)
    return result
