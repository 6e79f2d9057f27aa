"""Bodies of responses, and of the events of a stream."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes typing's own only from Python 3.12 on

from txlab.server.openai.wire import OpenAIModel

FinishReason = Literal["stop", "length"]


class ModelCard(OpenAIModel):
    """Something that `model` may name."""

    id: str
    """The name to give."""
    object: Literal["model"] = "model"
    created: int
    """When it was made or loaded, in seconds since 1970."""
    owned_by: str = "txlab"
    """Always the same here."""
    root: str
    """What the name stands for: the base model, an adapter's id, or a checkpoint's path."""
    parent: str | None = None
    """The base model that an adapter belongs to."""
    max_model_len: int
    """Most tokens of prompt and text together."""


class ModelList(OpenAIModel):
    """All that is alive; checkpoints, too, are served by their path."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    """The base model, and the live adapters, the newest first."""


class Usage(OpenAIModel):
    """Counted tokens."""

    prompt_tokens: int
    """Of all prompts."""
    completion_tokens: int
    """Of all texts, with the tokens that ended them."""
    total_tokens: int
    """Both."""


class CompletionLogprobs(OpenAIModel):
    """One entry in each list for each token that begins within the text."""

    tokens: list[str]
    """What each token stands for."""
    token_logprobs: list[float | None]
    """Its log probability; null for the first token of an echoed prompt, which nothing precedes."""
    top_logprobs: list[dict[str, float] | None] | None
    """The likeliest tokens in its place and the token itself, where they were asked for."""
    text_offset: list[int]
    """Where in the text it begins, in characters."""


class CompletionChoice(OpenAIModel):
    """One text, or in a stream the next piece of one."""

    index: int
    """Its number: the texts of the first prompt come first."""
    text: str
    """The text, without the stop string that ended it."""
    logprobs: CompletionLogprobs | None = None
    """Where they were asked for."""
    finish_reason: FinishReason | None = None
    """`stop` at a stop string or the model's own end, `length` at `max_tokens`; null before the end of a stream."""


class Completion(OpenAIModel):
    """Drawn texts; in a stream one event."""

    id: str
    """The same in all events of a stream."""
    object: Literal["text_completion"] = "text_completion"
    created: int
    """When it was asked for, in seconds since 1970."""
    model: str
    """As the request named it."""
    choices: list[CompletionChoice]
    """The texts."""
    usage: Usage | None = None
    """In a stream only in the last event, where `include_usage` asked for it."""


class TopLogprob(OpenAIModel):
    """One of the likeliest tokens."""

    token: str
    """What it stands for."""
    logprob: float
    """Its log probability."""
    bytes: list[int]
    """Its UTF-8 bytes: a token may be a part of a character."""


class TokenLogprob(TopLogprob):
    """A drawn token."""

    top_logprobs: list[TopLogprob]
    """The likeliest tokens in its place, as many as were asked for."""


class ChatLogprobs(OpenAIModel):
    """Log probabilities of a text's tokens."""

    content: list[TokenLogprob]
    """One for each token that begins within the text."""


class ChatMessage(OpenAIModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    """The text, without the stop string that ended it."""
    refusal: None = None
    """Always null."""


class ChatChoice(OpenAIModel):
    """One answer."""

    index: int
    """Its number."""
    message: ChatMessage
    """The answer."""
    logprobs: ChatLogprobs | None = None
    """Where they were asked for."""
    finish_reason: FinishReason
    """`stop` at a stop string or the model's own end, `length` at `max_tokens`."""


class ChatCompletion(OpenAIModel):
    """Answers to a conversation."""

    id: str
    """Made up."""
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """When it was asked for, in seconds since 1970."""
    model: str
    """As the request named it."""
    choices: list[ChatChoice]
    """The answers."""
    usage: Usage
    """Counted tokens."""


class Delta(TypedDict, total=False):
    """What is new of a message; the role comes first and once."""

    role: Literal["assistant"]
    content: str


class DeltaChoice(OpenAIModel):
    """The next piece of an answer."""

    index: int
    """The answer's number."""
    delta: Delta
    """What is new."""
    logprobs: ChatLogprobs | None = None
    """Of the tokens that begin within the piece, where they were asked for."""
    finish_reason: FinishReason | None = None
    """Null before the end."""


class ChatCompletionChunk(OpenAIModel):
    """One event of a streamed chat completion."""

    id: str
    """The same in all events of a stream."""
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    """When it was asked for, in seconds since 1970."""
    model: str
    """As the request named it."""
    choices: list[DeltaChoice] = Field(default_factory=list)
    """The pieces; none in the event that counts the tokens."""
    usage: Usage | None = None
    """Only in the last event, where `include_usage` asked for it."""
