"""Sampling: sequences join and leave a shared KV cache between short runs of decode steps.

A step admits what has room, computes some pieces of prompts, and decodes a few tokens for the rows whose prompts are
complete. What another row or a kept prefix begins with is copied, not computed. Where the cache would outgrow its
limit, the youngest row gives its place up and is computed again later. Each row has its own adapter, limits, stops,
temperature and random stream.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

import jax
import numpy as np

from txlab.engine import decoding
from txlab.engine.cache_rows import CacheRows
from txlab.engine.decoding import Ends, Rows
from txlab.engine.drawing import DrawParams, Draws
from txlab.engine.jobs import Job, Sequence
from txlab.engine.packing import bucket
from txlab.engine.prefixes import MIN_SHARED, Prefixes, common
from txlab.engine.prompt_scores import PromptScores
from txlab.engine.requests import Sample
from txlab.engine.stops import StopStrings, stop_id_table
from txlab.lora.adapter import Adapter, tree_bytes
from txlab.lora.adapter_set import AdapterSet, Routes, combine
from txlab.lora.bank import Snapshot
from txlab.models.attention import LayerCache
from txlab.models.base import BaseModel
from txlab.models.mesh import replicated

PIECE = 32  # tokens of a prompt that are prefilled as one row of a batch
PIECES = (16, 4, 1)  # of prompts, in one dispatch
PATIENCE = 4  # steps that few complete rows wait for many incomplete ones, at most
GROUP = 6  # layers in one program, at most: more are slower to compile, fewer take more dispatches
COLDEST = 1e-5  # lower temperatures differ from it in nothing that float32 can hold

Told = Callable[[Sequence, int], None]
"""``told(sequence, seen)``: it has new tokens, from number ``seen`` on."""


class Sampler:
    """Continuous batching over one base model. The engine thread alone calls it."""

    def __init__(
        self, base: BaseModel, rows: int, steps: int, cache_limit: int, prefix_limit: int, told: Told = lambda *_: None
    ):
        self._base, self._config = base, base.config
        decoder = base.decoder
        self._ends = Ends(decoder.embedding[...], decoder.norm[...], decoder.head)
        self._weights = decoder.weights
        self._placement = replicated(base.mesh)
        self._most_rows, self._steps, self._cache_limit = rows, steps, cache_limit
        self._told = told
        self._numbers = count()
        self._waiting: deque[Sequence] = deque()
        self._rows = CacheRows(base.config, decoder.head.dtype, rows)
        self._prefixes = Prefixes(prefix_limit)
        self._members: tuple[Adapter | None, ...] = (None,)
        self._adapters: AdapterSet | None = None  # of the members
        self._patience = PATIENCE

    @property
    def busy(self) -> bool:
        """Whether any sequence decodes or waits."""
        return bool(self._waiting or self._rows.sequences)

    @property
    def jobs(self) -> list[Job]:
        """Jobs with a sequence that decodes or waits."""
        return list(dict.fromkeys(s.job for s in (*self._rows.sequences, *self._waiting)))

    @property
    def occupancy(self) -> tuple[int, int, int]:
        """Sequences in the cache, rows of the cache, and sequences that wait."""
        return len(self._rows.sequences), len(self._rows.owners), len(self._waiting)

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache; of kept prefixes apart."""
        return self._rows.memory_bytes

    @property
    def memory_bytes(self) -> int:
        """Of the cache, the kept prefixes, and the adapters of those who sample as they are laid out for it."""
        laid_out = None if self._adapters is None else (self._adapters.layers, self._adapters.head)
        return self.cache_bytes + self._prefixes.memory_bytes + tree_bytes(laid_out)

    def add(self, request: Sample, snapshot: Snapshot | None) -> Job:
        """Queue the sequences of a request."""
        params = request.params
        seed = secrets.randbits(63) if params.seed is None else params.seed % 2**64
        stops = self._base.eos_ids if params.stop is None else params.stop
        ids = tuple(stop for stop in stops if isinstance(stop, int))
        strings = [stop for stop in stops if isinstance(stop, str)]
        stop_strings = StopStrings(strings, self._base.tokenizer, request.prompt)
        job = Job(next(self._numbers), request, snapshot, seed, ids, PromptScores(request))
        job.sequences = [Sequence(job, index, stop_strings.search()) for index in range(request.num_samples)]
        self._waiting.extend(job.sequences)
        return job

    def step(self) -> list[Job]:
        """Admit what has room, prefill some, decode a few tokens for complete rows. Returns the jobs that ended."""
        self._admit()
        self._share()
        self._prefill()
        self._share()
        self._decode()
        ended = [s for s in self._rows.sequences if s.stop_reason]
        for sequence in ended:
            self._retain(sequence)
        self._rows.release(lambda s: bool(s.stop_reason))
        self._rest()
        return [job for job in dict.fromkeys(s.job for s in ended) if job.done]

    def cancel(self, job: Job) -> None:
        """Forget a job that has not ended: its rows are free from the next step on."""
        self._waiting = deque(s for s in self._waiting if s.job is not job)
        self._rows.release(lambda s: s.job is job)
        self._rest()

    def clear(self) -> list[Job]:
        """Forget everything, after a failure. Returns the jobs that were under way."""
        jobs = self.jobs
        self._waiting.clear()
        self._prefixes.clear()
        self._rows.release(lambda _: True)
        self._rest()
        self._members, self._adapters = (None,), None
        return jobs

    def _rest(self) -> None:
        """Free the cache where nobody needs it."""
        if not self.busy:
            self._rows.rest()

    # ------------------------------------------------------------------------- admission

    def _admit(self) -> None:
        """Give rows to those that wait, as far as the cache may grow; take some back where it outgrew its limit."""
        active = self._rows.sequences
        while len(active) > 1 and not self._fits(active):
            youngest = max(active, key=lambda s: (s.job.number, s.index))
            active.remove(youngest)
            self._give_up(youngest)
        joining: list[Sequence] = []
        while self._waiting and self._fits([*active, *joining, self._waiting[0]]):
            joining.append(self._waiting.popleft())
        self._rows.make_room(joining, self._needed_tokens([*active, *joining]))
        if joining:
            self._meet()
        for sequence in joining:
            self._find_source(sequence, active)
            active.append(sequence)

    def _give_up(self, sequence: Sequence) -> None:
        """Let it wait again, with nothing of it in the cache."""
        self._rows.release(lambda s: s is sequence)
        sequence.filled, sequence.source = 0, None
        self._waiting.appendleft(sequence)

    def _fits(self, sequences: list[Sequence]) -> bool:
        """Whether these may be in the cache together, for now. One alone always may."""
        if len(sequences) == 1:
            return True
        needed = self._rows.needed_bytes(len(sequences), self._needed_tokens(sequences))
        return len(sequences) <= self._most_rows and needed <= self._cache_limit

    def _needed_tokens(self, sequences: Iterable[Sequence]) -> int:
        """What the longest of them has in the cache before the next step."""
        return max((s.position + min(s.remaining, self._steps) for s in sequences), default=0)

    def _meet(self) -> None:
        """Have an adapter set for everybody. Some who have left may stay in it, since it takes time to lay one out."""
        members = tuple(dict.fromkeys(s.job.adapter for s in self._rows.sequences))
        if set(members) <= set(self._members) and len(self._members) <= 2 * len(members):
            return
        self._members, self._adapters = members, None  # the old set is freed first
        self._adapters = combine(members, self._config.num_layers, self._placement)

    def _routes(self, adapters: list[Adapter | None]) -> Routes:
        """Which adapter of the set each row goes through."""
        if self._adapters is None:
            return None
        entries = {adapter: entry for entry, adapter in enumerate(self._members)}
        return self._adapters.routes([entries.get(adapter, -1) for adapter in adapters])

    # ------------------------------------------------------------------- shared beginnings

    def _find_source(self, sequence: Sequence, others: list[Sequence]) -> None:
        """Who has, or will have, computed the longest beginning of a sequence's text: a kept prefix, or another row."""
        job = sequence.job
        text = sequence.text[: sequence.position]
        if job.scores.pending and not any(other.job is job for other in others):
            text = text[: job.scores.next_row]  # what is asked of the rest of the prompt has to be computed
        same = [other for other in others if other.job.adapter is job.adapter]
        lengths = [common(other.text[: other.position], text) for other in same]
        longest = max(lengths, default=0)
        kept = self._prefixes.find(job.adapter, text)
        if kept is not None and kept[1] > longest:
            prefix, sequence.filled = kept
            self._rows.put(sequence, prefix)
            job.hit_tokens = max(job.hit_tokens, sequence.filled)
        elif longest >= MIN_SHARED:
            sequence.source, sequence.shared = same[lengths.index(longest)], longest

    def _share(self) -> None:
        """Copy what others have computed by now; who lost its source computes for itself."""
        for sequence in self._rows.sequences:
            if (source := sequence.source) is None:
                continue
            if source not in self._rows.owners:
                sequence.source = None
            elif source.filled >= sequence.shared:
                self._rows.copy(source, sequence)
                sequence.source, sequence.filled = None, sequence.shared
                if source.job is not sequence.job:
                    sequence.job.hit_tokens = max(sequence.job.hit_tokens, sequence.shared)

    def _retain(self, sequence: Sequence) -> None:
        """Keep what may be continued: a conversation's turn, or a prompt that was sampled several times."""
        text = sequence.text[: sequence.filled]
        text = text if len(sequence.job.sequences) == 1 else text[: len(sequence.job.request.prompt) - 1]
        adapter = sequence.job.adapter
        if len(text) >= MIN_SHARED and not self._prefixes.holds(adapter, text):
            self._prefixes.add(adapter, self._rows.take(sequence, text))

    # --------------------------------------------------------------------------- prefill

    def _prefill(self) -> None:
        """One dispatch of pieces of incomplete prompts, dealt in turn so that a short one does not wait for a long."""
        incomplete = [s for s in self._rows.sequences if s.filled < s.position and s.source is None]
        if not incomplete:
            return
        pieces: list[tuple[Sequence, int]] = []
        starts = {s: range(s.filled, s.position, PIECE) for s in incomplete}
        for turn in range(max(map(len, starts.values()))):
            pieces += [(s, starts[s][turn]) for s in incomplete if turn < len(starts[s])]
        size = next((n for n in PIECES if len(pieces) > n // 2), 1)
        self._prefill_pieces(pieces[:size], size)
        for sequence in {s for s, _ in pieces[:size]}:
            if sequence.filled == sequence.position:
                sequence.job.scores.fetch()

    def _prefill_pieces(self, pieces: list[tuple[Sequence, int]], size: int) -> None:
        tokens, positions = np.zeros((size, PIECE), np.int32), np.full((size, PIECE), self._rows.width, np.int32)
        rows = np.zeros(size, np.int32)
        adapters: list[Adapter | None] = [None] * size
        for i, (sequence, start) in enumerate(pieces):
            text = sequence.text[start : min(start + PIECE, sequence.position)]
            tokens[i, : len(text)] = text
            positions[i, : len(text)] = np.arange(start, start + len(text))
            rows[i], adapters[i] = self._rows.row(sequence), sequence.job.adapter
            sequence.filled = max(sequence.filled, start + len(text))
        inputs = decoding.embed(self._config, self._ends.embedding, tokens, positions)
        hidden = self._layers(inputs, self._routes(adapters), rows)
        for i, (sequence, start) in enumerate(pieces):
            self._score(sequence.job, hidden, i, start)

    def _layers(self, inputs: decoding.Inputs, routes: Routes, rows: np.ndarray | None) -> jax.Array:
        """All layers, some at a time: states (B, T, D). Replaces the cache."""
        x, cache = inputs.x, self._rows.cache
        size = max(n for n in range(1, GROUP + 1) if self._config.num_layers % n == 0)
        after: list[LayerCache] = []
        for first in range(0, self._config.num_layers, size):
            here = slice(first, first + size)
            factors = None if self._adapters is None else self._adapters.layers[here]
            x, part = decoding.layers(
                self._config,
                self._weights[here],
                factors,
                routes,
                cache[here],
                x,
                inputs.rope,
                inputs.positions,
                rows,
            )
            after += part
        self._rows.cache = tuple(after)
        return x

    def _score(self, job: Job, hidden: jax.Array, row: int, start: int) -> None:
        """Find out what the job asks of the positions from ``start`` on, whose states are hidden[row] (T, D)."""
        for at in job.scores.slices(start, PIECE):
            asked = decoding.Asked(
                tokens=job.scores.tokens(at, PIECE),
                positions=np.arange(at, at + PIECE, dtype=np.int32),
                temperature=np.float32(_temperature(job.request.params.temperature)),
                seed=np.array(divmod(job.seed, 2**32), np.uint32),
            )
            top_k = min(job.scores.top_k, self._config.vocab_size)
            routes, own = self._routes([job.adapter]), None if self._adapters is None else self._adapters.head
            scores = decoding.score(
                self._config, top_k, job.scores.alternatives, self._ends, own, routes, hidden[row], asked
            )
            job.scores.add(at, scores)

    # -------------------------------------------------------------------------- decoding

    def _decode(self) -> None:
        """A few tokens for each complete row."""
        ready = [s is not None and s.filled == s.position and not s.stop_reason for s in self._rows.owners]
        complete, incomplete = sum(ready), len(self._rows.sequences) - sum(ready)
        self._patience -= 1
        if not complete or (incomplete > complete and self._patience > 0):
            return
        self._patience = PATIENCE
        rows, routes = self._row_arrays(ready), self._routes([s.job.adapter if s else None for s in self._rows.owners])
        beyond = np.int32(self._rows.width)
        own = None if self._adapters is None else self._adapters.head
        inputs = decoding.enter(self._config, self._ends.embedding, rows, beyond)
        drawn = []
        for _ in range(self._run_length(ready)):
            x = self._layers(inputs, routes, None)
            rows, draws, inputs = decoding.draw_next(
                self._config, self._top_logprobs_k(), self._ends, own, routes, x, rows, beyond
            )
            drawn.append(draws)
        drawn = jax.device_get(drawn)
        for row, sequence in enumerate(self._rows.owners):
            if sequence is not None and ready[row]:
                self._take(sequence, [Draws(*(array[row] for array in draws)) for draws in drawn])

    def _run_length(self, ready: list[bool]) -> int:
        """Steps until the next look at who comes and goes."""
        remaining = [
            s.remaining for s, is_ready in zip(self._rows.owners, ready, strict=True) if s is not None and is_ready
        ]
        soonest = min(remaining) if self._waiting else max(remaining)  # a row that ends is for one that waits
        return max(1, min(self._steps, soonest))

    def _take(self, sequence: Sequence, draws: list[Draws]) -> None:
        """Give a sequence its new tokens."""
        kept = [one for one in draws if one.tokens >= 0]
        seen = len(sequence.tokens)
        sequence.extend(jax.tree.map(lambda *arrays: np.stack(arrays), *kept))
        sequence.filled = sequence.position
        self._told(sequence, seen)

    def _top_logprobs_k(self) -> int:
        """How many of the likeliest tokens some row wants, rounded up so that few programs are compiled."""
        most = max(s.job.request.topk_sample_logprobs for s in self._rows.sequences)
        return min(bucket(most, 8), self._config.vocab_size) if most else 0

    def _row_arrays(self, ready: list[bool]) -> Rows:
        def column(dtype, of, empty):
            pairs = zip(self._rows.owners, ready, strict=True)
            return np.array([of(s) if s is not None and is_ready else empty for s, is_ready in pairs], dtype)

        vocabulary = self._config.vocab_size
        return Rows(
            token=column(np.int32, lambda s: s.last_token, 0),
            position=column(np.int32, lambda s: s.position, 0),
            drawn=column(np.int32, lambda s: len(s.tokens), 0),
            remaining=column(np.int32, lambda s: s.remaining, 0),
            stop_ids=stop_id_table([() if s is None else s.job.stop_ids for s in self._rows.owners]),
            draw=DrawParams(
                temperature=column(np.float32, lambda s: _temperature(s.job.request.params.temperature), 0),
                top_k=column(np.int32, lambda s: _top_k(s.job.request.params.top_k, vocabulary), vocabulary),
                top_p=column(np.float32, lambda s: s.job.request.params.top_p, 1),
                seed=column(np.uint32, lambda s: divmod(s.job.seed, 2**32), (0, 0)),
                sample=column(np.int32, lambda s: s.index, 0),
            ),
        )


def _temperature(value: float) -> float:
    return max(value, COLDEST) if value > 0 else 0.0


def _top_k(value: int, vocabulary: int) -> int:
    return vocabulary if value == -1 else min(value, vocabulary)
