"""Sampling: sequences join and leave a shared KV cache between short runs of decode steps.

A prompt is prefilled once, all but its last token, whatever the number of its samples; the last token is the first
that decodes. Each row of the batch has its own adapter, limits, stops, temperature and random stream.
"""

from __future__ import annotations

import secrets
from collections import deque

import jax
import numpy as np
from flax import nnx

from txlab.engine import decoding
from txlab.engine.drawing import DrawParams, Draws
from txlab.engine.jobs import Job, Sequence
from txlab.engine.kv_cache import cache_bytes, cache_size, copy_row, resize, rows_bucket, width_bucket
from txlab.engine.packing import bucket
from txlab.engine.prompt_scores import PromptScores, slice_size
from txlab.engine.requests import Sample
from txlab.engine.stops import StopStrings, stop_id_table
from txlab.lora.adapter import Adapter
from txlab.lora.bank import Snapshot
from txlab.lora.linear import AdapterSet, combine
from txlab.models.attention import KVCache, make_cache
from txlab.models.base import BaseModel

SMALL_ROWS = 8  # a batch of so many is not shrunk while it decodes
PREFILL_TOKENS = 1024  # of prompts that are prefilled together, padding included
PREFILL_PIECE = 512  # of one prompt in one dispatch: what attention weighs at once is this times the prompt
COLDEST = 1e-5  # lower temperatures differ from it in nothing that float32 can hold


class Sampler:
    """Continuous batching over one base model. The engine thread alone calls it."""

    def __init__(self, base: BaseModel, rows: int, steps: int, cache_limit: int):
        self._base = base
        self._graph, self._state = nnx.split(base.decoder)
        self._dtype = base.decoder.head.dtype
        self._most_rows, self._steps, self._cache_limit = rows, steps, cache_limit
        self._waiting: deque[Sequence] = deque()
        self._rows: list[Sequence | None] = []  # what each row of the cache decodes
        self._cache: KVCache | None = None
        self._set: tuple[tuple[Adapter | None, ...], int, AdapterSet | None] | None = None

    @property
    def busy(self) -> bool:
        """Whether any sequence decodes or waits."""
        return bool(self._waiting) or any(self._rows)

    @property
    def jobs(self) -> list[Job]:
        """Jobs with a sequence that decodes or waits."""
        return list(dict.fromkeys(s.job for s in (*self._rows, *self._waiting) if s is not None))

    def add(self, request: Sample, snapshot: Snapshot | None) -> Job:
        """Queue the sequences of a request."""
        params = request.params
        seed = secrets.randbits(63) if params.seed is None else params.seed % 2**64
        stops = self._base.eos_ids if params.stop is None else params.stop
        ids = tuple(stop for stop in stops if isinstance(stop, int))
        strings = StopStrings([stop for stop in stops if isinstance(stop, str)], self._base.tokenizer)
        job = Job(request, snapshot, seed, ids, strings, PromptScores(request))
        job.sequences = [Sequence(job, index) for index in range(request.num_samples)]
        self._waiting.extend(job.sequences)
        return job

    def step(self) -> list[Job]:
        """Admit what has room, decode a few tokens for all rows. Returns the jobs that ended."""
        self._admit()
        self._decode()
        ended = {s.job: None for s in self._rows if s is not None and s.stop_reason}
        self._rows = [None if s is None or s.stop_reason else s for s in self._rows]
        return [job for job in ended if job.done]

    def cancel(self, job: Job) -> None:
        """Forget a job that has not ended: its rows are free from the next step on."""
        self._waiting = deque(s for s in self._waiting if s.job is not job)
        self._rows = [None if s is None or s.job is job else s for s in self._rows]

    def clear(self) -> list[Job]:
        """Forget everything, after a failure. Returns the jobs that were under way."""
        jobs = self.jobs
        self._waiting.clear()
        self._rows, self._cache, self._set = [], None, None
        return jobs

    # ------------------------------------------------------------------------- admission

    def _admit(self) -> None:
        active = [s for s in self._rows if s is not None]
        joining: list[Sequence] = []
        while self._waiting and self._fits([*active, *joining, self._waiting[0]]):
            joining.append(self._waiting.popleft())
        if joining or not active or self._sparse(len(active)):
            self._make_room([*active, *joining], len(active))
        self._prefill(joining)

    def _sparse(self, active: int) -> bool:
        """Whether so few rows are left that a smaller batch pays for its move. The last step down does not."""
        return len(self._rows) > SMALL_ROWS and active * 4 <= len(self._rows)

    def _fits(self, sequences: list[Sequence]) -> bool:
        """Whether these may decode together. One alone always may."""
        if len(sequences) == 1:
            return True
        if len(sequences) > self._most_rows:
            return False
        rows = rows_bucket(len(sequences), self._most_rows)
        width = width_bucket(max(s.most_tokens for s in sequences))
        return cache_bytes(self._base.config, rows, width, self._dtype) <= self._cache_limit

    def _make_room(self, sequences: list[Sequence], active: int) -> None:
        """Rows and cache for exactly ``sequences``, of which the first ``active`` are in the cache now."""
        if not sequences:
            self._rows, self._cache, self._set = [], None, None
            return
        rows = rows_bucket(len(sequences), self._most_rows)
        width = width_bucket(max(s.most_tokens for s in sequences))
        if self._cache is None or not active:
            if self._cache is None or cache_size(self._cache) != (rows, width):
                self._cache = None  # freed before its successor is made
                self._cache = make_cache(self._base.config, rows, width, self._dtype)
        elif cache_size(self._cache) != (rows, width):
            keep = [row for row, s in enumerate(self._rows) if s is not None]
            self._cache = resize(self._cache, keep, rows, width)
        else:  # same size: everybody stays, newcomers take the empty rows
            places = list(self._rows)
            newcomers = iter(sequences[active:])
            self._rows = [next(newcomers, None) if s is None else s for s in places]
            return
        self._rows = [*sequences, *[None] * (rows - len(sequences))]

    def _prefill(self, joining: list[Sequence]) -> None:
        """Bring the prompts of ``joining`` into the cache, each prompt once."""
        first: dict[Job, Sequence] = {}
        for sequence in joining:
            first.setdefault(sequence.job, sequence)
        prompts = sorted((s for s in first.values() if s.position > 0), key=lambda s: s.position)
        while prompts:
            most = max(1, PREFILL_TOKENS // bucket(prompts[-1].position, 16))
            prompts, batch = prompts[:-most], prompts[-most:]
            self._prefill_batch(batch)
        for sequence in joining:
            source = first[sequence.job]
            if source is not sequence and sequence.position > 0:
                self._cache = copy_row(self._cache, self._rows.index(source), self._rows.index(sequence))
        for job in first:
            job.scores.fetch()

    def _prefill_batch(self, sequences: list[Sequence]) -> None:
        assert self._cache is not None
        count, width = bucket(len(sequences)), bucket(max(s.position for s in sequences), 16)
        _, beyond = cache_size(self._cache)
        tokens = np.zeros((count, width), np.int32)
        positions = np.full((count, width), beyond, np.int32)
        rows, entries = np.zeros(count, np.int32), np.zeros(count, np.int32)
        adapters, entry = self._adapters()
        for i, sequence in enumerate(sequences):
            length = sequence.position
            tokens[i, :length] = sequence.job.request.prompt[:-1]
            positions[i, :length] = np.arange(length)
            rows[i] = self._rows.index(sequence)
            entries[i] = entry[sequence.job.adapter]
        for start in range(0, width, PREFILL_PIECE):
            end = min(start + PREFILL_PIECE, width)
            piece = tokens[:, start:end], positions[:, start:end]
            self._cache, hidden = decoding.prefill(
                self._graph, bucket(end), self._state, adapters, self._cache, *piece, rows, entries
            )
            for i, sequence in enumerate(sequences):
                self._score(sequence.job, hidden, i, start)

    def _score(self, job: Job, hidden: jax.Array, row: int, start: int) -> None:
        """Find out what the job asks of the positions from ``start`` on, whose states are hidden[row] (T, D)."""
        width = hidden.shape[1]
        size = slice_size(width)
        for at in job.scores.slices(start, width):
            states = decoding.slice_states(hidden, size, np.int32(row), np.int32(at - start))
            asked = decoding.Asked(
                tokens=job.scores.tokens(at, size),
                positions=np.arange(at, at + size, dtype=np.int32),
                temperature=np.float32(_temperature(job.request.params.temperature)),
                seed=np.array(divmod(job.seed, 2**32), np.uint32),
            )
            top_k = min(job.scores.top_k, self._base.config.vocab_size)
            adapters = combine([job.adapter], 1)
            scores = decoding.score(self._graph, top_k, job.scores.alternatives, self._state, adapters, states, asked)
            job.scores.add(at, scores)

    # -------------------------------------------------------------------------- decoding

    def _decode(self) -> None:
        if not any(self._rows):
            return
        adapters, entry = self._adapters()
        rows = self._row_arrays(entry)
        self._cache, drawn = decoding.decode(
            self._graph,
            self._steps,
            self._top_logprobs_k(),
            self._state,
            adapters,
            self._cache,
            rows,
            np.int32(self._steps),
        )
        drawn = jax.device_get(drawn)
        for row, sequence in enumerate(self._rows):
            if sequence is not None:
                kept = int((drawn.tokens[row] >= 0).sum())
                sequence.extend(Draws(*(array[row, :kept] for array in drawn)))

    def _top_logprobs_k(self) -> int:
        """How many of the likeliest tokens some row wants, rounded up so that few programs are compiled."""
        most = max(0 if s is None else s.job.request.topk_sample_logprobs for s in self._rows)
        return min(bucket(most, 8), self._base.config.vocab_size) if most else 0

    def _row_arrays(self, entry: dict[Adapter | None, int]) -> decoding.Rows:
        def column(dtype, of, empty):
            return np.array([empty if s is None else of(s) for s in self._rows], dtype)

        vocabulary = self._base.config.vocab_size
        return decoding.Rows(
            token=column(np.int32, lambda s: s.last_token, 0),
            position=column(np.int32, lambda s: s.position, 0),
            drawn=column(np.int32, lambda s: len(s.tokens), 0),
            remaining=column(np.int32, lambda s: s.remaining, 0),
            adapter=column(np.int32, lambda s: entry[s.job.adapter], 0),
            stop_ids=stop_id_table([() if s is None else s.job.stop_ids for s in self._rows]),
            draw=DrawParams(
                temperature=column(np.float32, lambda s: _temperature(s.job.request.params.temperature), 0),
                top_k=column(np.int32, lambda s: _top_k(s.job.request.params.top_k, vocabulary), vocabulary),
                top_p=column(np.float32, lambda s: s.job.request.params.top_p, 1),
                seed=column(np.uint32, lambda s: divmod(s.job.seed, 2**32), (0, 0)),
                sample=column(np.int32, lambda s: s.index, 0),
            ),
        )

    def _adapters(self) -> tuple[AdapterSet | None, dict[Adapter | None, int]]:
        """The adapter set of the present rows, and each adapter's entry in it. Rebuilt only when the rows change."""
        members = tuple(dict.fromkeys(s.job.adapter for s in self._rows if s is not None))
        if self._set is None or self._set[0] != members:
            size = bucket(len(members))
            self._set = (members, size, combine(members, size))
        return self._set[2], {adapter: entry for entry, adapter in enumerate(members)}


def _temperature(value: float) -> float:
    return max(value, COLDEST) if value > 0 else 0.0


def _top_k(value: int, vocabulary: int) -> int:
    return vocabulary if value == -1 else min(value, vocabulary)
