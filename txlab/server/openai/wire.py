"""Bodies of requests, as OpenAI's API reference describes them. Unknown fields are ignored.

Fields that change what is drawn, and that this server cannot serve, are known only to be refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from txlab.server.errors import ApiError

Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1)]
TopCount = Annotated[int, Field(ge=0, le=20)]


def _plainly(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """One sentence instead of a problem for each form that a prompt may have."""
    try:
        return read(value)
    except ValidationError:
        forms = "expected a text, a list of texts, a list of token ids, or a list of such lists"
        raise PydanticCustomError("prompt", forms) from None


Prompts = Annotated[str | list[str] | list[Token] | list[list[Token]], WrapValidator(_plainly)]


class OpenAIModel(BaseModel):
    """Takes the descriptions of fields from the strings below them."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class StreamOptions(OpenAIModel):
    """What else a stream holds."""

    include_usage: bool = False
    """Whether one more event, before the end, counts the tokens."""


class Drawing(OpenAIModel):
    """What both kinds of completion share."""

    model: str = Field(examples=["HuggingFaceTB/SmolLM2-135M-Instruct"])
    """The base model, a `tinker://` path, or a live adapter by its name or id, whose present weights are used."""
    max_tokens: int | None = None
    """Most tokens to draw."""
    temperature: float | None = None
    """0 is greedy; 1 where it is not given."""
    top_p: float | None = None
    """Draw among the likeliest tokens that hold so much of the probability."""
    top_k: int | None = None
    """Draw among so many of the likeliest tokens; -1 is all of them."""
    n: Count | None = None
    """How many texts to draw for each prompt; 1 where it is not given."""
    seed: Seed | None = None
    """The same seed draws the same texts from the same weights."""
    stop: str | list[str] | None = None
    """Strings that end a text. They are not part of it."""
    stream: bool | None = None
    """Whether to send the text as it is drawn, in server-sent events."""
    stream_options: StreamOptions | None = None
    """Read only where `stream` is set."""
    presence_penalty: Any = None
    """Only 0 is served."""
    frequency_penalty: Any = None
    """Only 0 is served."""
    repetition_penalty: Any = None
    """Only 1 is served."""
    min_p: Any = None
    """Only 0 is served."""
    logit_bias: Any = None
    """Only an empty one is served."""
    user: str | None = None
    """Ignored."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(Drawing):
    """Continue a text."""

    prompt: Prompts = Field(examples=["The capital of France is"])
    """One prompt or several, each as text or as token ids."""
    logprobs: TopCount | None = None
    """Tell the log probability of each token, and of so many of the likeliest ones in its place."""
    echo: bool | None = None
    """Whether the text begins with the prompt; with `logprobs` its tokens are scored too."""
    suffix: Any = None
    """Refused: text is drawn forward only."""
    best_of: int | None = None
    """Only `n` is served."""


class Message(OpenAIModel):
    """One turn. What else it says of itself, such as a name, reaches the model's template."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who speaks; `developer` is another word for `system`."""
    content: str | list[dict[str, Any]] | None = None
    """The text, or parts `{"type": "text", "text": …}` of it."""


class ChatRequest(Drawing):
    """Answer a conversation, which the model's own template lays out."""

    messages: list[Message] = Field(examples=[[{"role": "user", "content": "Say hello in Pig Latin."}]])
    """The conversation so far."""
    max_completion_tokens: int | None = None
    """The same as `max_tokens`."""
    logprobs: bool | None = None
    """Whether to tell the log probability of each token."""
    top_logprobs: TopCount | None = None
    """Tell so many of the likeliest tokens in the place of each."""
    continue_final_message: bool = False
    """Whether to go on with the last message, which must be the assistant's, instead of answering it."""
    response_format: Any = None
    """Only `{"type": "text"}` is served."""
    tools: Any = None
    """Refused: put what the model should know of tools into its messages."""
    tool_choice: Any = None
    """Only `none` or `auto` is served."""
    functions: Any = None
    """Refused, as `tools`."""
    modalities: Any = None
    """Only `["text"]` is served."""
    audio: Any = None
    """Refused: this server draws text."""


SERVED: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "audio": (),
}


def refuse_unserved(body: Drawing) -> None:
    """Raise ApiError for a field whose value this server cannot serve. Absent is always served."""
    for name, values in SERVED.items():
        given = getattr(body, name, None)
        if given is not None and given not in values:
            also = f", or give {' or '.join(map(repr, values))}" if values else ""
            raise ApiError(400, f"{name} is not supported by this server: leave it out{also}", name)
