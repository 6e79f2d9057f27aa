"""Texts in pieces: what is told of a drawn text, at once or bit by bit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from txlab.engine.requests import SampledSequence, SampleResult, TopLogprobs
from txlab.models.detokenizer import Detokenizer, Vocabulary
from txlab.server.openai.plan import Plan
from txlab.server.openai.prompts import Prompt
from txlab.server.openai.replies import FinishReason
from txlab.server.openai.text import TextStream


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a text."""

    token: int
    start: int  # where in the text it begins, in characters
    logprob: float | None  # None for the first of a prompt
    top: tuple[tuple[int, float], ...] | None  # the likeliest tokens in its place and their logprobs, best first
    swallowed: str = ""  # what the beginning of the text leaves out of the tokens in this place


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of text ``index``, and the tokens that begin within it."""

    index: int
    text: str
    tokens: tuple[ScoredToken, ...] = ()
    finish_reason: FinishReason | None = None


class Text:
    """One text on its way."""

    def __init__(self, index: int, stream: TextStream):
        self.index = index
        self._stream = stream
        self._drawn: list[tuple[int, float]] = []  # tokens and their logprobs
        self._told = 0  # tokens that were told

    def feed(self, tokens: Sequence[int], logprobs: Sequence[float]) -> Piece:
        """Take newly drawn tokens; return what is certain of the text now."""
        self._drawn += zip(tokens, logprobs, strict=True)
        return Piece(self.index, self._stream.feed(tokens), self._begun())

    def finish(self, sequence: SampledSequence, offset: int = 0) -> Piece:
        """Take the finished sequence; return the rest of the text, ``offset`` characters after the prompt's begin."""
        seen = len(self._drawn)
        tokens = sequence.tokens[seen:].tolist()
        self._drawn += zip(tokens, sequence.logprobs[seen:].tolist(), strict=True)
        text = self._stream.feed(tokens) + self._stream.finish()
        reason: FinishReason = "stop" if self._stream.stopped else sequence.stop_reason
        return Piece(self.index, text, self._begun(offset, sequence.topk_logprobs), reason)

    def _begun(self, offset: int = 0, top: TopLogprobs | None = None) -> tuple[ScoredToken, ...]:
        """Tokens that begin within the text so far and were not told: neither a stop string's nor the end's."""
        first, starts = self._told, self._stream.starts
        self._told = bisect_left(starts, self._stream.length, lo=first)
        return tuple(
            ScoredToken(
                self._drawn[i][0], offset + starts[i], self._drawn[i][1], _likeliest(top, i), self._stream.swallowed(i)
            )
            for i in range(first, self._told)
        )


def new_texts(plan: Plan, number: int, vocabulary: Vocabulary) -> list[Text]:
    """The texts of prompt ``number``, of which nothing is drawn yet."""
    prompt = plan.prompts[number].tokens
    streams = [TextStream(Detokenizer(vocabulary, prompt), plan.stops) for _ in range(plan.n)]
    return [Text(number * plan.n + sample, stream) for sample, stream in enumerate(streams)]


def last_pieces(
    plan: Plan, number: int, texts: Sequence[Text], result: SampleResult, vocabulary: Vocabulary
) -> Iterator[Piece]:
    """What is left to tell of ``texts``, those of prompt ``number``: one piece of each."""
    head = _echo(plan.prompts[number], result, vocabulary) if plan.telling.echo else Piece(0, "")
    for text, sequence in zip(texts, result.sequences, strict=True):
        if plan.telling.echo_only:
            yield replace(head, index=text.index, finish_reason="length")
        else:
            rest = text.finish(sequence, offset=len(head.text))
            yield replace(rest, text=head.text + rest.text, tokens=head.tokens + rest.tokens)


def all_pieces(plan: Plan, results: Sequence[SampleResult], vocabulary: Vocabulary) -> list[Piece]:
    """Every text as one piece."""
    return [
        piece
        for number, result in enumerate(results)
        for piece in last_pieces(plan, number, new_texts(plan, number, vocabulary), result, vocabulary)
    ]


def _echo(prompt: Prompt, result: SampleResult, vocabulary: Vocabulary) -> Piece:
    """The prompt as the user wrote it, with its scores where there are any; of token ids the special ones too."""
    tokens = prompt.tokens.tolist()
    written = Detokenizer(vocabulary, special=prompt.text is None)
    text = "".join(map(written.feed, tokens)) + written.finish()
    starts = written.starts
    if prompt.text is not None and prompt.text != text:  # special tokens in it, or it was normalized
        text = prompt.text
        starts = vocabulary.places(text, tokens) or [min(start, len(text)) for start in starts]
    if result.prompt_logprobs is None:
        return Piece(0, text)
    top = result.topk_prompt_logprobs
    scored = (
        ScoredToken(
            token,
            starts[i],
            float(result.prompt_logprobs[i]) if i else None,
            _likeliest(top, i) if i else None,
            written.swallowed.get(i, ""),
        )
        for i, token in enumerate(tokens)
    )
    return Piece(0, text, tuple(scored))


def _likeliest(top: TopLogprobs | None, row: int) -> tuple[tuple[int, float], ...] | None:
    if top is None:
        return None
    return tuple(zip(top.token_ids[row].tolist(), top.logprobs[row].tolist(), strict=True))
