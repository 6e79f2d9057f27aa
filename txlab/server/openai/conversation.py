"""A conversation in the model's own layout. What its template does not read is refused, not left out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from txlab.server.errors import ApiError
from txlab.server.openai.prompts import Prompt
from txlab.server.openai.wire import ChatRequest, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTHING: tuple[Any, ...] = (None, "", [], {})  # what a field may be that says nothing
READ_ANYWAY = ("role", "content", "tool_call_id")  # templates take a tool's answers in their order
OTHER = "\u2042"  # in the place of a content, to see whether a template reads it


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
    opens = not go_on if body.add_generation_prompt is None else body.add_generation_prompt
    turns = [_turn(message, index) for index, message in enumerate(messages)]

    def lay_out(turns: list[dict[str, Any]], tokenize: bool) -> Any:
        return tokenizer.apply_chat_template(
            turns,
            tokenize=tokenize,
            add_generation_prompt=opens,
            continue_final_message=go_on,
            return_dict=False,
            **variables,
        )

    try:
        tokens = lay_out(turns, True)
    except Exception as error:  # the template is the model's: whatever it raises is its way to refuse
        raise ApiError(400, f"the model's chat template refuses these messages: {error}", "messages") from None
    _check_read(turns, lambda changed: lay_out(changed, False))
    return Prompt(np.array(tokens, np.int32))


def _check_variables(variables: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse variables that the template does not name, and those that are fields of the request or of the server."""
    template, own = tokenizer.get_chat_template(), inspect.signature(tokenizer.apply_chat_template).parameters
    for name in variables:
        if name in own or name == "messages" or not re.search(rf"\b{re.escape(name)}\b", template):
            where = f"chat_template_kwargs.{name}"
            raise ApiError(400, f"{where} is no variable of this model's chat template", "chat_template_kwargs")


def _check_read(turns: list[dict[str, Any]], lay_out: Callable[[list[dict[str, Any]]], str]) -> None:
    """Refuse what a template leaves out: a whole turn, whose role it does not know, or a field of one.

    What it reads shows: without it the text is another, or the template fails.
    """
    for index, turn in enumerate(turns):
        where = f"messages[{index}]"
        told = bool(turn["content"]) and turn["role"] not in ("user", "assistant")
        if told and not _matters(turns, index, turn | {"content": OTHER}, lay_out):
            message = f"{where}: this model's chat template leaves out a {turn['role']} message"
            raise ApiError(400, message, "messages")
        for name in turn.keys() - set(READ_ANYWAY):
            if not _matters(turns, index, {key: turn[key] for key in turn if key != name}, lay_out):
                cure = "leave it out, or say it in the content"
                raise ApiError(400, f"{where}.{name} is not read by this model's chat template: {cure}", "messages")


def _matters(
    turns: list[dict[str, Any]], index: int, other: dict[str, Any], lay_out: Callable[[list[dict[str, Any]]], str]
) -> bool:
    """Whether the text changes with ``other`` in the place of a turn."""
    try:
        return lay_out([*turns[:index], other, *turns[index + 1 :]]) != lay_out(turns)
    except Exception:  # a template that misses something has read it
        return True


def _turn(message: Message, index: int) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    extras = {name: value for name, value in (message.model_extra or {}).items() if value not in NOTHING}
    return {"role": role, "content": _text(message.content, f"messages[{index}].content"), **extras}


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
