"""A conversation in the model's own layout. What its template does not read is refused, not left out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from txlab.server.errors import ApiError
from txlab.server.openai.prompts import Prompt
from txlab.server.openai.wire import ChatRequest, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EVERY = "*"  # stands for all fields of a turn
EXEMPT = {"role", "content", "tool_call_id"}  # the order of messages says, too, which call a tool answers
NOTHING: tuple[Any, ...] = (None, "", [], {})  # what a field may be that says nothing


class Turn(dict[str, Any]):
    """One turn as a template reads it; ``read_fields`` tells what the template looked at."""

    def __init__(self, fields: Iterable[tuple[str, Any]]):
        super().__init__(fields)
        self._read: set[str] = set()

    def __deepcopy__(self, _: object) -> Turn:
        """A copy that is changed instead of this one; what is read of it is read of this one."""
        copy = Turn(super().items())
        copy._read = self._read
        return copy

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As a dict's."""
        self._read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self._read.add(EVERY)
        return super().__iter__()

    def items(self) -> Any:
        """As a dict's."""
        self._read.add(EVERY)
        return super().items()

    def values(self) -> Any:
        """As a dict's."""
        self._read.add(EVERY)
        return super().values()


def read_fields(turn: Turn) -> set[str]:
    """Names of a turn's fields that were read since it was made."""
    return set(turn.keys()) if EVERY in turn._read else set(turn._read)


def chat_prompt(body: ChatRequest, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Lay out a conversation for an answer, or so that the answer begins as the last message says."""
    messages, go_on = body.messages, bool(body.continue_final_message)
    if tokenizer.chat_template is None:
        raise ApiError(400, "this base model has no chat template: use completions", "messages")
    if not messages:
        raise ApiError(400, "messages is empty: expected at least one", "messages")
    if go_on and messages[-1].role != "assistant":
        raise ApiError(400, "continue_final_message: the last message must be the assistant's", "messages")
    if go_on and body.add_generation_prompt:
        both = "add_generation_prompt begins an answer, continue_final_message goes on with one: give one of them"
        raise ApiError(400, both, "add_generation_prompt")
    variables = body.chat_template_kwargs or {}
    _check_variables(variables, tokenizer)
    turns: list[Any] = [_turn(message, index) for index, message in enumerate(messages)]
    opens = not go_on if body.add_generation_prompt is None else body.add_generation_prompt
    try:
        tokens = tokenizer.apply_chat_template(
            turns, add_generation_prompt=opens, continue_final_message=go_on, return_dict=False, **variables
        )
    except Exception as error:  # the template is the model's: whatever it raises is its way to refuse
        raise ApiError(400, f"the model's chat template refuses these messages: {error}", "messages") from None
    for index, (message, turn) in enumerate(zip(messages, turns, strict=True)):
        _check_read(message, turn, f"messages[{index}]")
    return Prompt(np.array(tokens, np.int32))


def _check_variables(variables: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse variables that the template does not name, and those that are fields of the request or of the server."""
    template, own = tokenizer.get_chat_template(), inspect.signature(tokenizer.apply_chat_template).parameters
    for name in variables:
        if name in own or name == "messages" or not re.search(rf"\b{re.escape(name)}\b", template):
            where = f"chat_template_kwargs.{name}"
            raise ApiError(400, f"{where} is no variable of this model's chat template", "chat_template_kwargs")


def _check_read(message: Message, turn: Turn, where: str) -> None:
    """Refuse what a template left out: a whole turn, whose role it does not know, or a field of one."""
    read = read_fields(turn)
    if message.content and "content" not in read:
        raise ApiError(400, f"{where}: this model's chat template leaves out a {message.role} message", "messages")
    for name in turn.keys() - read - EXEMPT:
        cure = "leave it out, or say it in the content"
        raise ApiError(400, f"{where}.{name} is not read by this model's chat template: {cure}", "messages")


def _turn(message: Message, index: int) -> Turn:
    role = "system" if message.role == "developer" else message.role
    extras = {name: value for name, value in (message.model_extra or {}).items() if value not in NOTHING}
    fields = {"role": role, "content": _text(message.content, f"messages[{index}].content"), **extras}
    return Turn(fields.items())


def _text(content: str | list[dict[str, Any]] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for number, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            message = f"{where}[{number}] is {part.get('type')!r}: this model reads text parts only"
            raise ApiError(400, message, "messages")
        for name in part.keys() - {"type", "text"}:
            if part[name] not in NOTHING:
                message = f"{where}[{number}].{name} is unknown to this server: leave it out"
                raise ApiError(400, message, "messages", "unknown_parameter")
    return "".join(part["text"] for part in content)
