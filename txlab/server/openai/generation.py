"""Samples under way for one request, told all together or as they are drawn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import numpy as np

from txlab.engine.requests import Sample, SampledSequence, SampleResult
from txlab.server.openai.catalog import Catalog, Weights
from txlab.server.openai.pieces import Piece, Text, last_pieces, new_texts
from txlab.server.openai.plan import Plan
from txlab.server.openai.replies import Usage

Drawn = tuple[int, np.ndarray, np.ndarray]  # index among a prompt's texts, new tokens (n,) and their logprobs (n,)
Ended = asyncio.Task[SampleResult]


class Generation:
    """Draws what ``plan`` says from ``weights``, from now until ``close``, which must be called."""

    def __init__(self, catalog: Catalog, weights: Weights, plan: Plan, stream: bool = False):
        self.plan = plan
        self.completion_tokens = 0  # of what has ended
        self._catalog = catalog
        self._weights = weights
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, Drawn | Ended]] = asyncio.Queue()
        self._tasks = [self._start(number, stream and plan.at_once) for number in range(len(plan.samples))]

    def close(self) -> None:
        """Stop what is still drawn, and let go of the weights."""
        for task in self._tasks:
            task.cancel()
        self._catalog.release(self._weights)

    @property
    def usage(self) -> Usage:
        """Tokens of the prompts, and of the texts that have ended."""
        prompt, completion = self.plan.prompt_tokens, self.completion_tokens
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    async def results(self) -> list[SampleResult]:
        """What was drawn for each prompt; RequestError where one fails."""
        return [self._counted(result) for result in await asyncio.gather(*self._tasks)]

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield all texts piece by piece, as they come; RequestError where one fails."""
        vocabulary = self._catalog.vocabulary
        texts = [new_texts(self.plan, number, vocabulary) for number in range(len(self._tasks))]
        left = len(self._tasks)
        while left:
            number, news = await self._news.get()
            if isinstance(news, tuple):
                yield _fed(texts[number], news)
            else:
                left -= 1
                result = self._counted(news.result())
                for piece in last_pieces(self.plan, number, texts[number], result, vocabulary):
                    yield piece

    def _start(self, number: int, live: bool) -> Ended:
        """Begin to draw for a prompt; ``live``: with news of every token, else of the end."""
        request = replace(self.plan.samples[number], snapshot_id=self._weights.snapshot_id)
        task = self._loop.create_task(self._catalog.draw(self._weights, self._heard(number, request, live)))
        task.add_done_callback(lambda task: self._news.put_nowait((number, task)))
        return task

    def _heard(self, number: int, request: Sample, live: bool) -> Sample:
        def on_tokens(sample: int, tokens: np.ndarray, logprobs: np.ndarray) -> None:
            told = self._told(tokens)
            tokens, logprobs = tokens[:told], logprobs[:told]
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._news.put_nowait, (number, (sample, tokens, logprobs)))

        return replace(request, on_tokens=on_tokens) if live else request

    def _counted(self, result: SampleResult) -> SampleResult:
        """Count a result's tokens, and leave those out that ended a text."""
        if not self.plan.telling.echo_only:
            self.completion_tokens += sum(len(sequence.tokens) for sequence in result.sequences)
        return replace(result, sequences=tuple(map(self._without_end, result.sequences)))

    def _without_end(self, sequence: SampledSequence) -> SampledSequence:
        told = self._told(sequence.tokens)
        return replace(sequence, tokens=sequence.tokens[:told], logprobs=sequence.logprobs[:told])

    def _told(self, tokens: np.ndarray) -> int:
        """How many of newly drawn tokens are part of a text: not the last, where the text ends by it."""
        ended = len(tokens) > 0 and int(tokens[-1]) in self.plan.stop_ids
        return len(tokens) - ended


def _fed(texts: list[Text], drawn: Drawn) -> Piece:
    sample, tokens, logprobs = drawn
    return texts[sample].feed(tokens.tolist(), logprobs.tolist())
