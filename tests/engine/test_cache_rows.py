"""Rows of the cache: who has one, and what becomes of what is in it."""

from __future__ import annotations

import numpy as np
import pytest

from txlab.engine.cache_rows import CacheRows
from txlab.engine.jobs import Sequence
from txlab.engine.kv_cache import FEW_ROWS, cache_size
from txlab.engine.prefixes import Prefix
from txlab.engine.stops import StopSearch
from txlab.models.attention import KVCache, LayerCache
from txlab.models.base import BaseModel

MOST = 32


@pytest.fixture
def rows(base: BaseModel) -> CacheRows:
    return CacheRows(base.config, np.dtype(np.float32), MOST)


def some(count: int) -> list[Sequence]:
    return [Sequence(None, index, StopSearch([])) for index in range(count)]


def write(rows: CacheRows, sequence: Sequence, value: float) -> None:
    """Fill a row with a value."""
    row = rows.row(sequence)
    rows.cache = tuple(LayerCache(k.at[row].set(value), v.at[row].set(value)) for k, v in rows.cache)


def values(cache: KVCache, row: int, tokens: slice = slice(None)) -> set[float]:
    arrays = [a for layer in cache for a in (layer.k[row, :, :, tokens], layer.v[row, :, tokens])]
    return {float(value) for array in arrays for value in np.unique(array)}


def test_newcomers_take_free_rows_and_move_nobody(rows):
    first, second, third = some(3)
    rows.make_room([first, second, third], 100)
    write(rows, second, 2)
    rows.release(lambda s: s is first)
    newcomer = Sequence(None, 9, StopSearch([]))
    rows.make_room([newcomer], 100)
    assert rows.owners == [newcomer, second, third, None]
    assert values(rows.cache, 1) == {2.0}


@pytest.mark.parametrize(("more", "tokens", "size"), [(4, 100, (8, 128)), (0, 129, (4, 256)), (2, 300, (8, 512))])
def test_what_is_there_comes_along_when_the_cache_grows(rows, more, tokens, size):
    here = some(4)
    rows.make_room(here, 100)
    for value, sequence in enumerate(here):
        write(rows, sequence, value + 1)
    rows.release(lambda s: s is here[0])
    rows.make_room(some(more + 1), tokens)
    assert cache_size(rows.cache) == size
    for value, sequence in enumerate(here[1:]):
        assert values(rows.cache, rows.row(sequence), slice(128)) == {value + 2.0}


def test_a_large_cache_shrinks_where_few_are_left_and_a_small_one_does_not(rows):
    here = some(MOST)
    rows.make_room(here, 100)
    write(rows, here[20], 3)
    rows.release(lambda s: s.index not in (20, 21))
    rows.make_room([], 100)
    assert (cache_size(rows.cache), rows.owners) == ((2, 128), [here[20], here[21]])
    assert values(rows.cache, 0) == {3.0}
    small = some(FEW_ROWS)
    rows.release(lambda _: True)
    rows.make_room(small, 100)
    rows.release(lambda s: s is not small[5])
    rows.make_room([], 100)
    assert cache_size(rows.cache) == (FEW_ROWS, 128)


def test_a_wide_cache_narrows_where_only_short_ones_are_left(rows):
    long, short = some(2)
    rows.make_room([long, short], 1000)
    write(rows, short, 4)
    rows.release(lambda s: s is long)
    rows.make_room([], 100)
    assert cache_size(rows.cache) == (1, 128)
    assert values(rows.cache, 0) == {4.0}


def test_the_cache_is_freed_when_nobody_has_a_row(rows):
    one, other = some(2)
    rows.make_room([one, other], 100)
    assert rows.memory_bytes == rows.needed_bytes(2, 100)
    rows.release(lambda s: s is one)
    rows.rest()
    assert rows.memory_bytes > 0
    rows.release(lambda s: s is other)
    rows.rest()
    assert (rows.memory_bytes, list(rows.owners)) == (0, [])


def test_rows_are_copied(rows):
    one, other = some(2)
    rows.make_room([one, other], 100)
    write(rows, one, 5)
    rows.copy(one, other)
    assert values(rows.cache, 1) == {5.0}


@pytest.mark.parametrize("narrower", [False, True])
def test_a_kept_text_comes_back_as_far_as_it_fits(rows, narrower):
    (one,), (other,) = some(1), some(1)
    text = np.arange(150, dtype=np.int32)
    rows.make_room([one], 200)
    write(rows, one, 6)
    kept = rows.take(one, text)
    assert isinstance(kept, Prefix)
    assert cache_size(kept.cache)[1] >= len(text)
    rows.release(lambda _: True)
    rows.rest()
    rows.make_room([other], 100 if narrower else 400)
    rows.put(other, kept)
    assert values(rows.cache, 0, slice(128 if narrower else 150)) == {6.0}


def test_who_has_no_row_is_not_found(rows):
    with pytest.raises(ValueError, match="not in"):
        rows.row(some(1)[0])
