"""Sizes of the cache, and what stays in it when they change."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from txlab.engine.kv_cache import cache_bytes, cache_size, copy_row, resize, rows_bucket, width_bucket
from txlab.models.attention import KVCache, make_cache
from txlab.models.base import BaseModel


def filled(rows: int, width: int) -> KVCache:
    """A cache of 2 layers and 3 heads of 4, in which every number is another."""
    shape = (2, rows, 3, width, 4)
    k = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return KVCache(jax.numpy.asarray(k), jax.numpy.asarray(-k))


@pytest.mark.parametrize(("rows", "width"), [(8, 16), (3, 16), (3, 5), (2, 16), (8, 5)])
def test_resizing_moves_the_kept_rows_to_the_front(rows, width):
    old = filled(4, 8)
    new = resize(old, [3, 1], rows, width)
    assert cache_size(new) == (rows, width)
    shared = min(8, width)
    for one, other in zip(new, old, strict=True):
        np.testing.assert_array_equal(one[:, :2, :, :shared], other[:, [3, 1], :, :shared])


def test_copying_a_row_changes_that_row_alone():
    before = [np.array(array) for array in filled(4, 8)]
    after = copy_row(filled(4, 8), 2, 0)
    for one, other in zip(after, before, strict=True):
        np.testing.assert_array_equal(one[:, 0], other[:, 2])
        np.testing.assert_array_equal(one[:, 1:], other[:, 1:])


def test_sizes_come_from_a_small_set():
    assert [width_bucket(n) for n in (1, 256, 257, 1024, 1025, 8192)] == [256, 256, 1024, 1024, 4096, 16384]
    assert [rows_bucket(n, 32) for n in (1, 2, 8, 9, 32)] == [1, 8, 8, 32, 32]
    assert [rows_bucket(n, 20) for n in (9, 20)] == [20, 20]


def test_bytes_are_those_of_the_arrays(base: BaseModel):
    cache = make_cache(base.config, 3, 7)
    assert cache_bytes(base.config, 3, 7, np.float32) == cache.k.nbytes + cache.v.nbytes
