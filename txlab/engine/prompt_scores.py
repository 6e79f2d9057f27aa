"""What a request asks about its own prompt, gathered while the prompt is prefilled.

Row i speaks of prompt[i + 1]: the state at position i, which prefill computes anyway, predicts that token. Only the
rows that somebody asked for reach the head.
"""

from __future__ import annotations

import jax
import numpy as np

from txlab.engine.decoding import Scores
from txlab.engine.packing import HEAD_TOKENS, bucket
from txlab.engine.requests import AltTokens, Sample, TopLogprobs

SENTINEL = -99999.0  # logprob of a top-k entry that does not exist


class PromptScores:
    """The scores of one prompt, slice by slice."""

    def __init__(self, request: Sample):
        self._request = request
        self._rows = len(request.prompt) - 1
        self._next = min(self._first_text, self._first_target, 0 if request.prompt_alt_tokens_k else self._rows)
        self._parts: list[tuple[int, Scores]] = []  # first row, what was found from there on

    @property
    def top_k(self) -> int:
        """How many of the likeliest tokens to find, rounded up so that few programs are compiled."""
        return _bucket(self._request.topk_prompt_logprobs)

    @property
    def alternatives(self) -> int:
        """How many tokens to draw for each place, rounded up in the same way."""
        return _bucket(self._request.prompt_alt_tokens_k)

    @property
    def next_row(self) -> int:
        """The first row that is still to be scored."""
        return self._next

    @property
    def pending(self) -> bool:
        """Whether any is."""
        return self._next < self._rows

    def slices(self, start: int, width: int) -> list[int]:
        """Where to score, in a piece of ``width`` positions from ``start`` on: slices of ``slice_size(width)``."""
        size = slice_size(width)
        return [s for s in range(start, start + width, size) if max(s, self._next) < min(s + size, self._rows)]

    def tokens(self, start: int, size: int) -> np.ndarray:  # (size, K) int32
        """Whose logprobs are wanted from row ``start`` on: the prompt's own tokens, then the targets."""
        end = min(start + size, self._rows)
        targets = self._request.target_prompt_logprobs
        wanted = np.zeros((size, bucket(1 + (0 if targets is None else targets.shape[1]))), np.int32)
        wanted[: end - start, 0] = self._request.prompt[start + 1 : end + 1]
        if targets is not None:
            wanted[: end - start, 1 : 1 + targets.shape[1]] = np.maximum(targets[start:end], 0)
        return wanted

    def add(self, start: int, scores: Scores) -> None:
        """Take the scores of the slice that begins at row ``start``, still on the device."""
        self._parts.append((start, scores))
        self._next = start + scores.logprobs.shape[0]

    def fetch(self) -> None:
        """Bring everything to the host. Errors of the device's programs surface here."""
        self._parts = jax.device_get(self._parts)

    def prompt_logprobs(self) -> np.ndarray | None:
        """Of the prompt's own tokens, (P,) float32: NaN where not asked for."""
        if not self._request.prompt_logprobs:
            return None
        logprobs = self._gather("logprobs", 1, np.nan)[:, 0]
        logprobs[: self._first_text] = np.nan
        return np.concatenate(([np.float32(np.nan)], logprobs))

    def top_logprobs(self) -> TopLogprobs | None:
        """The likeliest tokens in each place, (P, k)."""
        k = self._request.topk_prompt_logprobs
        if not k:
            return None
        ids, logprobs = self._gather("top_ids", k, 0), self._gather("top_logprobs", k, SENTINEL)
        ids[: self._first_text], logprobs[: self._first_text] = 0, SENTINEL
        return TopLogprobs(np.pad(ids, ((1, 0), (0, 0))), np.pad(logprobs, ((1, 0), (0, 0)), constant_values=SENTINEL))

    def target_logprobs(self) -> np.ndarray | None:
        """Of the tokens that the request names, (P - 1, K) float32."""
        targets = self._request.target_prompt_logprobs
        if targets is None:
            return None
        return np.where(targets >= 0, self._gather("logprobs", 1 + targets.shape[1], 0)[:, 1:], np.float32(0))

    def alt_tokens(self) -> AltTokens | None:
        """What was drawn in each place, (P - 1, k)."""
        k = self._request.prompt_alt_tokens_k
        return AltTokens(self._gather("alt_tokens", k, 0), self._gather("alt_logprobs", k, 0)) if k else None

    @property
    def _first_text(self) -> int:
        """The first row whose own token, and likeliest ones, are wanted."""
        if not (self._request.prompt_logprobs or self._request.topk_prompt_logprobs):
            return self._rows
        last_n = self._request.prompt_logprobs_last_n
        return 0 if last_n is None else self._rows - last_n

    @property
    def _first_target(self) -> int:
        """The first row that names a token."""
        targets = self._request.target_prompt_logprobs
        if targets is None:
            return self._rows
        named = (targets >= 0).any(axis=1)
        return int(named.argmax()) if named.any() else self._rows

    def _gather(self, name: str, columns: int, empty: float) -> np.ndarray:  # (P - 1, columns)
        """One field of all slices; ``empty`` where nothing was asked."""
        whole = np.full((self._rows, columns), empty, np.int32 if name in ("top_ids", "alt_tokens") else np.float32)
        for start, scores in self._parts:
            part = getattr(scores, name)[: self._rows - start, :columns]
            whole[start : start + len(part)] = part
        return whole


def slice_size(width: int) -> int:
    """How many positions of a piece of ``width`` go through the head together; it divides every such width."""
    return min(HEAD_TOKENS, width)


def _bucket(k: int) -> int:
    return bucket(k) if k else 0
