"""Prompts and conversations whose keys and values are kept, so that what begins like them is not computed again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from txlab.lora.adapter import Adapter, tree_bytes
from txlab.models.attention import KVCache

MIN_SHARED = 16  # tokens in common that are worth a copy


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A text and, for each of its tokens, what attention remembers; a cache of one row at least as wide."""

    tokens: np.ndarray  # (n,) int32
    cache: KVCache
    memory_bytes: int = field(init=False)  # of the cache; counted once, since all are summed up often

    def __post_init__(self) -> None:
        object.__setattr__(self, "memory_bytes", tree_bytes(self.cache))


class _Base:
    """Stands in for an adapter where there is none."""


class Prefixes:
    """Prefixes by adapter, at most so many bytes of them; the least recently used go first.

    Those of an adapter go with it: nothing here keeps a snapshot alive.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._base = _Base()
        self._of: WeakKeyDictionary[object, OrderedDict[int, Prefix]] = WeakKeyDictionary()
        self._uses = 0

    def find(self, adapter: Adapter | None, text: np.ndarray) -> tuple[Prefix, int] | None:
        """What shares the longest beginning with ``text``, and how many tokens that is; None: fewer than MIN_SHARED."""
        kept = self._of.get(adapter or self._base, OrderedDict())
        shared, used = max(((common(p.tokens, text), use) for use, p in kept.items()), default=(0, 0))
        if shared < MIN_SHARED:
            return None
        prefix = kept.pop(used)
        self._keep(kept, prefix)
        return prefix, shared

    def holds(self, adapter: Adapter | None, text: np.ndarray) -> bool:
        """Whether all of ``text`` is here already."""
        kept = self._of.get(adapter or self._base, OrderedDict())
        return any(common(prefix.tokens, text) == len(text) for prefix in kept.values())

    def add(self, adapter: Adapter | None, prefix: Prefix) -> None:
        """Keep a prefix; those that it continues go, and others as the limit demands."""
        if prefix.memory_bytes > self._limit:
            return
        kept = self._of.setdefault(adapter or self._base, OrderedDict())
        for use in [use for use, p in kept.items() if common(p.tokens, prefix.tokens) == len(p.tokens)]:
            del kept[use]
        self._keep(kept, prefix)
        while self.memory_bytes > self._limit:
            oldest = min((kept for kept in self._of.values() if kept), key=lambda kept: next(iter(kept)))
            oldest.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._of.clear()

    @property
    def memory_bytes(self) -> int:
        """Of all that is kept."""
        return sum(prefix.memory_bytes for kept in self._of.values() for prefix in kept.values())

    def _keep(self, kept: OrderedDict[int, Prefix], prefix: Prefix) -> None:
        self._uses += 1
        kept[self._uses] = prefix


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two texts begin with in common."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
