"""Bodies of requests, as OpenAI's API reference and vLLM's describe them: the fields that are honoured.

Any other is refused by name, unless it asks for nothing (see ``fields``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from txlab.server.openai.fields import CHATS, COMPLETIONS, Unserved, served_part

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


def _describe_unserved(schema: dict[str, Any], asked: type[Asked]) -> None:
    schema["properties"] |= {name: field.schema for name, field in asked.unserved.items()}
    schema["additionalProperties"] = False


class Asked(OpenAIModel):
    """Body of a request, of which no field is ignored."""

    model_config = ConfigDict(json_schema_extra=_describe_unserved)

    unserved: ClassVar[Mapping[str, Unserved]] = {}
    """Fields that are known to be refused."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unserved(cls, given: Any) -> Any:
        return served_part(given, cls.model_fields, cls.unserved) if isinstance(given, Mapping) else given


class StreamOptions(Asked):
    """What else a stream holds."""

    unserved: ClassVar[Mapping[str, Unserved]] = {
        "continuous_usage_stats": Unserved((False,)),
        "include_obfuscation": Unserved((False,)),
    }

    include_usage: bool | None = None
    """Whether one more event, before the end, counts the tokens."""


class Drawing(Asked):
    """What both kinds of completion share."""

    model: str = Field(examples=["HuggingFaceTB/SmolLM2-135M-Instruct"])
    """The base model, a `tinker://` path, or a live adapter by its id or name, whose present weights are used.

    Of adapters of one name it is the newest; `GET /v1/models` says which that is, and has the others by their ids.
    """
    max_tokens: int | None = None
    """Most tokens to draw."""
    temperature: float | None = None
    """0 is greedy; 1 where it is not given."""
    top_p: float | None = None
    """Draw among the likeliest tokens that hold so much of the probability."""
    top_k: int | None = None
    """Draw among so many of the likeliest tokens; 0 and -1 are all of them."""
    n: Count | None = None
    """How many texts to draw for each prompt; 1 where it is not given."""
    seed: Seed | None = None
    """The same seed draws the same texts from the same weights."""
    stop: str | list[str] | None = None
    """Strings that end a text. They are not part of it."""
    stop_token_ids: list[Token] | None = None
    """Tokens that end a text, beside the model's own. They are not part of it."""
    ignore_eos: bool | None = None
    """Whether to draw on past the tokens with which the model ends a text."""
    stream: bool | None = None
    """Whether to send the text as it is drawn, in server-sent events."""
    stream_options: StreamOptions | None = None
    """Taken only where `stream` is set."""
    user: str | None = None
    """Names who asks, as other services keep account of; what is drawn does not depend on it."""
    safety_identifier: str | None = None
    """The same."""
    prompt_cache_key: str | None = None
    """The same: what prompts share is found by itself."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(Drawing):
    """Continue a text."""

    unserved = COMPLETIONS

    prompt: Prompts = Field(examples=["The capital of France is"])
    """One prompt or several, each as text or as token ids."""
    logprobs: TopCount | None = None
    """Tell the log probability of each token, and of so many of the likeliest ones in its place."""
    echo: bool | None = None
    """Whether the text begins with the prompt; with `logprobs` its tokens are scored too."""
    add_special_tokens: bool | None = None
    """Whether a prompt of text begins as the tokenizer begins one; false takes the text alone."""
    best_of: int | None = None
    """Only `n` is served."""


class Message(OpenAIModel):
    """One turn. What else it says of itself, such as a name, is for the model's template, which must read it."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """Who speaks; `developer` is another word for `system`. The model's template must know the role."""
    content: str | list[dict[str, Any]] | None = None
    """The text, or parts `{"type": "text", "text": …}` of it."""


class ChatRequest(Drawing):
    """Answer a conversation, which the model's own template lays out."""

    unserved = CHATS

    messages: list[Message] = Field(examples=[[{"role": "user", "content": "Say hello in Pig Latin."}]])
    """The conversation so far."""
    max_completion_tokens: int | None = None
    """Most tokens to draw; goes before `max_tokens`, where both are given."""
    logprobs: bool | None = None
    """Whether to tell the log probability of each token."""
    top_logprobs: TopCount | None = None
    """Tell so many of the likeliest tokens in the place of each."""
    add_generation_prompt: bool | None = None
    """Whether the layout ends where an answer begins; it does unless the final message is continued."""
    continue_final_message: bool | None = None
    """Whether to go on with the last message, which must be the assistant's, instead of answering it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the model's template, such as `{"enable_thinking": false}`. It must know them."""
