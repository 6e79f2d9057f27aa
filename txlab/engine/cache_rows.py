"""Whose each row of the KV cache is, and what is done to rows: given, taken back, copied, kept for later."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

import jax.numpy as jnp
import numpy as np

from txlab.engine.jobs import Sequence
from txlab.engine.kv_cache import (
    FEW_ROWS,
    cache_size,
    copy_row,
    put_row,
    resize,
    rows_bucket,
    take_row,
    token_bytes,
    width_bucket,
)
from txlab.engine.packing import bucket
from txlab.engine.prefixes import Prefix
from txlab.lora.adapter import tree_bytes
from txlab.models.attention import KVCache, make_cache
from txlab.models.config import ModelConfig

KEPT_WIDTH = 64  # tokens of a row that are kept, at least; more in powers of two


class CacheRows:
    """The rows of one cache, at most ``most``; there is none while nobody has a row."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, most: int):
        self._config, self._dtype, self._most = config, dtype, most
        self._owners: list[Sequence | None] = []
        self._cache: KVCache | None = None

    @property
    def owners(self) -> Items[Sequence | None]:
        """Whose each row is; None: nobody's."""
        return self._owners

    @property
    def sequences(self) -> list[Sequence]:
        """Those that have a row, in the order of rows."""
        return [s for s in self._owners if s is not None]

    @property
    def cache(self) -> KVCache:
        """The cache, while somebody has a row."""
        assert self._cache is not None
        return self._cache

    @cache.setter
    def cache(self, new: KVCache) -> None:
        self._cache = new

    @property
    def width(self) -> int:
        """Tokens that fit into a row."""
        return cache_size(self.cache)[1]

    @property
    def memory_bytes(self) -> int:
        """Of the cache."""
        return tree_bytes(self._cache)

    def row(self, sequence: Sequence) -> int:
        """Which row is its own. Raises ValueError where it has none."""
        return self._owners.index(sequence)

    def needed_bytes(self, sequences: int, tokens: int) -> int:
        """Memory of a cache for so many sequences, the longest of so many tokens."""
        rows = rows_bucket(sequences, self._most)
        return rows * width_bucket(tokens, rows) * token_bytes(self._config, self._dtype)

    def make_room(self, joining: list[Sequence], tokens: int) -> None:
        """Give each of ``joining`` a row, and every row room for so many tokens; where much is free, less of it."""
        here = self.sequences
        count = len(here) + len(joining)
        if not count:
            return
        rows = rows_bucket(count, self._most)
        width = width_bucket(tokens, rows)
        if not here:
            if self._cache is None or cache_size(self._cache) != (rows, width):
                self._cache = None  # freed before its successor is made
                self._cache = make_cache(self._config, rows, width, self._dtype)
            self._owners = [*joining, *[None] * (rows - count)]
            return
        if self._suits(rows, width, count):
            newcomers = iter(joining)
            self._owners = [next(newcomers, None) if s is None else s for s in self._owners]
            return
        keep = [row for row, s in enumerate(self._owners) if s is not None]
        self._cache = resize(self.cache, keep, rows, width)
        self._owners = [*here, *joining, *[None] * (rows - count)]

    def release(self, leaves: Callable[[Sequence], bool]) -> None:
        """Take the rows of those that leave back; the cache stays until ``rest``."""
        self._owners = [None if s is None or leaves(s) else s for s in self._owners]

    def rest(self) -> None:
        """Free the cache, where nobody has a row."""
        if not any(self._owners):
            self._owners, self._cache = [], None

    def copy(self, source: Sequence, target: Sequence) -> None:
        """Write all that ``source`` has in the cache over what ``target`` has."""
        self._cache = copy_row(self.cache, np.int32(self.row(source)), np.int32(self.row(target)))

    def put(self, sequence: Sequence, prefix: Prefix) -> None:
        """Write a kept prefix to the beginning of a row, as far as it fits."""
        _, kept = cache_size(prefix.cache)
        part = prefix.cache if kept <= self.width else take_row(prefix.cache, np.int32(0), self.width)
        self._cache = put_row(self.cache, np.int32(self.row(sequence)), part)

    def take(self, sequence: Sequence, text: np.ndarray) -> Prefix:
        """``text``, with which the sequence begins, and what the cache has of it."""
        width = min(self.width, bucket(len(text), KEPT_WIDTH))
        return Prefix(text, take_row(self.cache, np.int32(self.row(sequence)), width))

    def _suits(self, rows: int, width: int, count: int) -> bool:
        """Whether the cache is large enough, and not so much too large that a smaller one pays for the move.

        Of FEW_ROWS none is taken away: their number costs little.
        """
        have, wide = cache_size(self.cache)
        sparse = (have > FEW_ROWS and count * 4 <= have) or width * 4 <= wide
        return rows <= have and width <= wide and not sparse
