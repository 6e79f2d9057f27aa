"""Pieces of texts in the form of each API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel

from txlab.models.detokenizer import Vocabulary
from txlab.server.openai import replies
from txlab.server.openai.pieces import Piece, ScoredToken
from txlab.server.openai.replies import Usage

LEAST = -9999.0  # what minus infinity is told as: JSON has none


class Format(Protocol):
    """How one request is answered, whole or as the events of a stream."""

    def reply(self, pieces: Sequence[Piece], usage: Usage) -> BaseModel:
        """Whole texts."""

    def opening(self, index: int) -> BaseModel | None:
        """The event before the first piece of a text, if there is one."""

    def event(self, piece: Piece) -> BaseModel:
        """One piece of a stream."""

    def counted(self, usage: Usage) -> BaseModel:
        """The event that counts the tokens."""


class Completions:
    """Completions of ``model``, with logprobs where ``scored``."""

    def __init__(self, model: str, scored: bool, vocabulary: Vocabulary):
        self._about: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._scored = scored
        self._vocabulary = vocabulary

    def reply(self, pieces: Sequence[Piece], usage: Usage) -> replies.Completion:
        """Whole texts."""
        return replies.Completion(**self._about, choices=[self._choice(piece) for piece in pieces], usage=usage)

    def opening(self, index: int) -> None:
        """A text has none."""

    def event(self, piece: Piece) -> replies.Completion:
        """One piece of a stream."""
        return replies.Completion(**self._about, choices=[self._choice(piece)])

    def counted(self, usage: Usage) -> replies.Completion:
        """The event that counts the tokens."""
        return replies.Completion(**self._about, choices=[], usage=usage)

    def _choice(self, piece: Piece) -> replies.CompletionChoice:
        logprobs = self._logprobs(piece.tokens) if self._scored else None
        return replies.CompletionChoice(
            index=piece.index, text=piece.text, logprobs=logprobs, finish_reason=piece.finish_reason
        )

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> replies.CompletionLogprobs:
        return replies.CompletionLogprobs(
            tokens=[self._vocabulary.readable(token.token, token.swallowed) for token in tokens],
            token_logprobs=[None if token.logprob is None else finite(token.logprob) for token in tokens],
            top_logprobs=None if all(token.top is None for token in tokens) else [self._top(token) for token in tokens],
            text_offset=[token.start for token in tokens],
        )

    def _top(self, token: ScoredToken) -> dict[str, float] | None:
        if token.top is None or token.logprob is None:
            return None
        entries = (*reversed(token.top), (token.token, token.logprob))  # of those that read alike, the likelier
        return {self._vocabulary.readable(other, token.swallowed): finite(logprob) for other, logprob in entries}


class Chat:
    """Chat completions of ``model``, with logprobs where ``scored``."""

    def __init__(self, model: str, scored: bool, vocabulary: Vocabulary):
        self._about: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._scored = scored
        self._vocabulary = vocabulary

    def reply(self, pieces: Sequence[Piece], usage: Usage) -> replies.ChatCompletion:
        """Whole answers."""
        return replies.ChatCompletion(**self._about, choices=[self._choice(piece) for piece in pieces], usage=usage)

    def opening(self, index: int) -> replies.ChatCompletionChunk:
        """The event that says who speaks."""
        return self._chunk(replies.DeltaChoice(index=index, delta={"role": "assistant", "content": ""}))

    def event(self, piece: Piece) -> replies.ChatCompletionChunk:
        """One piece of a stream."""
        delta: replies.Delta = {"content": piece.text} if piece.text else {}
        return self._chunk(
            replies.DeltaChoice(
                index=piece.index,
                delta=delta,
                logprobs=self._logprobs(piece.tokens) if piece.tokens else None,
                finish_reason=piece.finish_reason,
            )
        )

    def counted(self, usage: Usage) -> replies.ChatCompletionChunk:
        """The event that counts the tokens."""
        return replies.ChatCompletionChunk(**self._about, usage=usage)

    def _chunk(self, choice: replies.DeltaChoice) -> replies.ChatCompletionChunk:
        return replies.ChatCompletionChunk(**self._about, choices=[choice])

    def _choice(self, piece: Piece) -> replies.ChatChoice:
        assert piece.finish_reason is not None
        return replies.ChatChoice(
            index=piece.index,
            message=replies.ChatMessage(content=piece.text),
            logprobs=self._logprobs(piece.tokens),
            finish_reason=piece.finish_reason,
        )

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> replies.ChatLogprobs | None:
        return replies.ChatLogprobs(content=[self._token(token) for token in tokens]) if self._scored else None

    def _token(self, token: ScoredToken) -> replies.TokenLogprob:
        assert token.logprob is not None  # a chat shows no prompt
        told = self._top(token.token, token.logprob)
        top = [self._top(other, logprob) for other, logprob in token.top or ()]
        return replies.TokenLogprob(token=told.token, logprob=told.logprob, bytes=told.bytes, top_logprobs=top)

    def _top(self, token: int, logprob: float) -> replies.TopLogprob:
        written = self._vocabulary.written(token)
        return replies.TopLogprob(token=self._vocabulary.readable(token), logprob=finite(logprob), bytes=list(written))


def finite(logprob: float) -> float:
    """A log probability that JSON can carry."""
    return max(logprob, LEAST)
