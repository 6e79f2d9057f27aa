"""Where a sequence ends: stop token ids on the device, stop strings on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from txlab.models.detokenizer import Detokenizer, Tokens, vocabulary_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopStrings:
    """Strings that end the texts after a prompt.

    A text is what is shown of it. Special tokens are not, but a string may name them.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase, prompt: Tokens = ()):
        self._strings = tuple(strings)
        self._special: tuple[str, ...] = ()
        if strings:
            self._vocabulary = vocabulary_of(tokenizer)
            self._prompt = prompt
            words = self._vocabulary.special_words
            self._special = tuple(string for string in strings if any(word in string for word in words))

    def search(self) -> StopSearch:
        """Look for them in one sequence, from its first token on."""
        looks = []
        if self._strings:
            looks.append(_Look(self._strings, Detokenizer(self._vocabulary, self._prompt)))
        if self._special:
            looks.append(_Look(self._special, Detokenizer(self._vocabulary, self._prompt, special=True)))
        return StopSearch(looks)


class StopSearch:
    """Finds the first token at which the text of a sequence contains a stop string."""

    def __init__(self, looks: Sequence[_Look]):
        self._looks = looks

    def first(self, tokens: Sequence[int]) -> int | None:
        """Look at the next tokens of the sequence: how many of them there are when a string first appears."""
        for count, token in enumerate(tokens if self._looks else (), 1):
            found = [look.found(token) for look in self._looks]  # each has to hear of every token
            if any(found):
                return count
        return None


class _Look:
    """Looks for strings in a text that grows."""

    def __init__(self, strings: Sequence[str], text: Detokenizer):
        self._strings = strings
        self._text = text
        self._longest = max(map(len, strings))
        self._end = ""  # of the text so far: what may be the beginning of a string

    def found(self, token: int) -> bool:
        """Whether a string is complete with this token."""
        said = self._end + self._text.feed(token)
        waiting = self._text.waiting(self._longest)
        self._end = said[max(0, len(said) - self._longest + 1) :]
        seen = waiting if len(waiting) == self._longest else said + waiting
        return any(string in seen for string in self._strings)


def stop_id_table(stops: Sequence[Sequence[int]]) -> np.ndarray:
    """One row of stop ids per sequence, filled up with -1: (S, M) int32, M a power of two and at least 4."""
    width = 4
    while width < max((len(ids) for ids in stops), default=0):
        width *= 2
    table = np.full((len(stops), width), -1, np.int32)
    for row, ids in enumerate(stops):
        table[row, : len(ids)] = ids
    return table
