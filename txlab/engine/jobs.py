"""A Sample request on its way through the sampler: the job, and its sequences."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np

from txlab.engine.drawing import Draws
from txlab.engine.prompt_scores import PromptScores
from txlab.engine.requests import Sample, SampledSequence, SampleResult, TopLogprobs
from txlab.engine.stops import StopSearch
from txlab.lora.adapter import Adapter
from txlab.lora.bank import Snapshot

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """One Sample request: its sequences, and what is known of its prompt."""

    number: int
    request: Sample
    snapshot: Snapshot | None  # None: the base
    seed: int
    stop_ids: tuple[int, ...]
    scores: PromptScores
    hit_tokens: int = 0  # of the prompt that were not computed for it
    started: float = field(default_factory=time.monotonic)
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def adapter(self) -> Adapter | None:
        """The frozen adapter that samples, None for the base."""
        return None if self.snapshot is None else self.snapshot.adapter

    @property
    def model_id(self) -> str | None:
        """The adapter that the snapshot was taken of, if any."""
        return None if self.snapshot is None else self.snapshot.model_id

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self.started

    @property
    def done(self) -> bool:
        """Whether every sequence has ended."""
        return all(sequence.stop_reason for sequence in self.sequences)

    def result(self) -> SampleResult:
        """What the request drew."""
        return SampleResult(
            sequences=tuple(sequence.result() for sequence in self.sequences),
            prompt_logprobs=self.scores.prompt_logprobs(),
            topk_prompt_logprobs=self.scores.top_logprobs(),
            target_prompt_logprobs=self.scores.target_logprobs(),
            prompt_alt_tokens=self.scores.alt_tokens(),
            prompt_cache_hit_tokens=self.hit_tokens,
        )


@dataclass(slots=True, eq=False)
class Sequence:
    """One continuation on its way: all its state."""

    job: Job
    index: int
    stop_strings: StopSearch
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # per token: ids (k,), logprobs (k,)
    stop_reason: str = ""
    filled: int = 0  # tokens of prompt and continuation that are in its row of the cache
    source: Sequence | None = None  # whose first ``shared`` tokens are to be copied, once they are there
    shared: int = 0

    @property
    def text(self) -> np.ndarray:
        """Prompt and continuation, int32."""
        return np.concatenate((self.job.request.prompt, np.array(self.tokens, np.int32)))

    @property
    def last_token(self) -> int:
        """The newest token, which is not in the cache yet."""
        return self.tokens[-1] if self.tokens else int(self.job.request.prompt[-1])

    @property
    def position(self) -> int:
        """Where the newest token belongs."""
        return len(self.job.request.prompt) - 1 + len(self.tokens)

    @property
    def remaining(self) -> int:
        """Tokens that may still be drawn."""
        return 0 if self.stop_reason else self.job.request.params.max_tokens - len(self.tokens)

    def extend(self, drawn: Draws) -> None:
        """Take n newly drawn tokens, arrays of NumPy, and end where a stop id, a stop string or the limit says so.

        The request's ``on_tokens`` is told what is kept of them.
        """
        seen = len(self.tokens)
        self.tokens += drawn.tokens.tolist()
        self.logprobs += drawn.logprobs.tolist()
        if k := self.job.request.topk_sample_logprobs:
            # Copies: a view would keep the arrays of the whole batch.
            self.top += zip(drawn.top_ids[:, :k].copy(), drawn.top_logprobs[:, :k].copy(), strict=True)
        end = self.stop_strings.first(self.tokens[seen:])
        if end is not None:
            end += seen
            del self.tokens[end:], self.logprobs[end:], self.top[end:]
            self.stop_reason = "stop"
        elif self.tokens and self.tokens[-1] in self.job.stop_ids:
            self.stop_reason = "stop"
        elif self.remaining <= 0:
            self.stop_reason = "length"
        self._tell(self.tokens[seen:], self.logprobs[seen:])

    def result(self) -> SampledSequence:
        """The finished continuation."""
        tokens, logprobs = np.array(self.tokens, np.int32), np.array(self.logprobs, np.float32)
        top = TopLogprobs(*map(np.stack, zip(*self.top, strict=True))) if self.top else None
        return SampledSequence(tokens, logprobs, "stop" if self.stop_reason == "stop" else "length", top)

    def _tell(self, tokens: Items[int], logprobs: Items[float]) -> None:
        """Report tokens. Whoever listens and fails must not end the batch."""
        if self.job.request.on_tokens is None or not tokens:
            return
        try:
            self.job.request.on_tokens(self.index, np.array(tokens, np.int32), np.array(logprobs, np.float32))
        except Exception:
            log.exception("the receiver of sampled tokens failed")
