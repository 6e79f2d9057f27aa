"""What is continued: texts, token ids, or a conversation in the model's own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from txlab.server.errors import ApiError
from txlab.server.openai.wire import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt. ``text`` is what the user wrote, where it was text."""

    tokens: np.ndarray  # (P,) int32
    text: str | None = None


def completion_prompts(
    given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    """Read ``prompt`` in any of its four forms."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]  # type: ignore[assignment]
    if not given:
        raise ApiError(400, "prompt is empty: expected a text, token ids, or a list of either", "prompt")
    return [_prompt(one, tokenizer) for one in given]


def _prompt(given: Any, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    if isinstance(given, str):
        return Prompt(np.array(tokenizer.encode(given), np.int32), given)
    return Prompt(np.array(given, np.int32))


def chat_prompt(messages: Sequence[Message], go_on: bool, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Lay out a conversation for an answer; with ``go_on`` the answer begins as the last message says."""
    if tokenizer.chat_template is None:
        raise ApiError(400, "this base model has no chat template: use completions", "messages")
    if not messages:
        raise ApiError(400, "messages is empty: expected at least one", "messages")
    if go_on and messages[-1].role != "assistant":
        raise ApiError(400, "continue_final_message: the last message must be the assistant's", "messages")
    conversation = [_turn(message, index) for index, message in enumerate(messages)]
    try:
        tokens = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=not go_on, continue_final_message=go_on, return_dict=False
        )
    except Exception as error:  # the template is the model's: whatever it raises is its way to refuse
        raise ApiError(400, f"the model's chat template refuses these messages: {error}", "messages") from None
    return Prompt(np.array(tokens, np.int32))


def _turn(message: Message, index: int) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    return message.model_dump() | {"role": role, "content": _text(message.content, index)}


def _text(content: str | list[dict[str, Any]] | None, index: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for number, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            where = f"messages[{index}].content[{number}]"
            raise ApiError(400, f"{where} is {part.get('type')!r}: this model reads text parts only", "messages")
    return "".join(part["text"] for part in content)
