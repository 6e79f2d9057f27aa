"""Where a sequence ends: stop token ids on the device, stop strings on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopStrings:
    """Finds the first token at which the text of a sequence contains one of some strings.

    Only a tail of the text is decoded for each token: every token but the special ones adds at least one byte, so a
    string that ends in the newest token began at most its own length in bytes, and a margin, before.
    """

    MARGIN = 4  # tokens: the first ones of a cut decode wrongly, split characters and stripped spaces

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase):
        self._strings = tuple(strings)
        self._tokenizer = tokenizer
        self._tail = max((len(s.encode()) for s in strings), default=0) + self.MARGIN

    def first(self, tokens: Sequence[int], start: int) -> int | None:
        """How many of ``tokens`` there are when a string first appears; those before ``start`` were looked at."""
        if not self._strings:
            return None
        for end in range(start + 1, len(tokens) + 1):
            text = str(self._tokenizer.decode(list(tokens[max(0, end - self._tail) : end])))
            if any(s in text for s in self._strings):
                return end
        return None


def stop_id_table(stops: Sequence[Sequence[int]]) -> np.ndarray:
    """One row of stop ids per sequence, filled up with -1: (S, M) int32, M a power of two and at least 4."""
    width = 4
    while width < max((len(ids) for ids in stops), default=0):
        width *= 2
    table = np.full((len(stops), width), -1, np.int32)
    for row, ids in enumerate(stops):
        table[row, : len(ids)] = ids
    return table
