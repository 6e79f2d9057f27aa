"""Requests that arrive on their own, whether or not the engine keeps up, and what became of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests of log-uniform sizes, each from the base or one of the adapters, at random; the same for one seed."""

    requests: int = 200
    rate: float | None = None  # arrivals a second, a Poisson process; None: all are there at the beginning
    static: bool = False  # in batches, each of which ends before the next begins
    prompt_tokens: tuple[int, int] = (8, 256)  # shortest, longest
    max_tokens: tuple[int, int] = (4, 128)
    adapters: int = 4
    seed: int = 0

    def visits(self) -> list[Visit]:
        """The requests in their order of arrival; the rate has no effect on anything but the arrivals."""
        rng = np.random.default_rng(self.seed)
        gaps = rng.exponential(size=self.requests)
        arrivals = (np.cumsum(gaps) - gaps[0]) / self.rate if self.rate else np.zeros(self.requests)
        prompts, limits = (
            _log_uniform(rng, *bounds, self.requests) for bounds in (self.prompt_tokens, self.max_tokens)
        )
        adapters = rng.integers(-1, self.adapters, self.requests)
        columns = (array.tolist() for array in (arrivals, prompts, limits, adapters))
        return [Visit(*values) for values in zip(*columns, strict=True)]


@dataclass(slots=True)
class Visit:
    """One request of a trace."""

    arrival: float  # seconds after the first one
    prompt_tokens: int
    max_tokens: int
    adapter: int  # its index; -1: the base
    told: list[tuple[float, int]] = field(default_factory=list)  # time.perf_counter() and how many new tokens

    def tell(self, index: int, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Note that tokens were drawn; a TokensDrawn."""
        self.told.append((time.perf_counter(), len(tokens)))


def play(
    visits: Sequence[Visit], submit: Callable[[Sequence[Visit]], list[Future]], rows: int | None = None
) -> dict[str, Any]:
    """Submit visits when they arrive; with ``rows``, at most so many, and the next when all of these have ended.

    Returns what ``figures`` says. Raises what the first failed one raised.
    """
    waiting, futures = deque(visits), []
    began = time.perf_counter()
    while waiting:
        time.sleep(max(0.0, began + waiting[0].arrival - time.perf_counter()))
        now = time.perf_counter() - began
        arrived: list[Visit] = []
        while waiting and waiting[0].arrival <= now and len(arrived) != rows:
            arrived.append(waiting.popleft())
        submitted = submit(arrived)
        if rows is not None:
            wait(submitted)
        futures += submitted
    for future in futures:
        future.result()
    return figures(visits, began)


def figures(visits: Sequence[Visit], began: float) -> dict[str, Any]:
    """Throughput of all and while requests waited, and seconds from arrival to the first token."""
    told = [(at - began, count) for visit in visits for at, count in visit.told]
    firsts = np.array([visit.told[0][0] - began for visit in visits])
    waits = firsts - [visit.arrival for visit in visits]
    seconds, busy = max(at for at, _ in told), float(firsts.max())
    tokens = sum(count for _, count in told)
    return {
        "seconds": seconds,
        "new_tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "busy_tokens_per_s": sum(count for at, count in told if at <= busy) / busy,
        "first_token_s": {f"p{p}": float(np.percentile(waits, p)) for p in (50, 95)},
    }


def _log_uniform(rng: np.random.Generator, low: int, high: int, size: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), size)).round().astype(int)
