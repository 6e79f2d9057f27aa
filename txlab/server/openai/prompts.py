"""Prompts of completions: texts and token ids. Conversations are laid out in ``conversation``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from txlab.server.errors import ApiError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt. ``text`` is what the user wrote, where it was text."""

    tokens: np.ndarray  # (P,) int32
    text: str | None = None


def completion_prompts(
    given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    special: bool = True,
) -> list[Prompt]:
    """Read ``prompt`` in any of its four forms; ``special``: a text begins with the tokenizer's own tokens."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]  # type: ignore[assignment]
    if not given:
        raise ApiError(400, "prompt is empty: expected a text, token ids, or a list of either", "prompt")
    return [_prompt(one, tokenizer, special) for one in given]


def _prompt(given: Any, tokenizer: PreTrainedTokenizerBase, special: bool) -> Prompt:
    if isinstance(given, str):
        return Prompt(np.array(tokenizer.encode(given, add_special_tokens=special), np.int32), given)
    return Prompt(np.array(given, np.int32))
