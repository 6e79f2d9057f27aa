"""Rows that move between caches of different sizes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from txlab.engine.kv_cache import (
    cache_size,
    copy_row,
    put_row,
    resize,
    rows_bucket,
    take_row,
    token_bytes,
    width_bucket,
)
from txlab.lora.adapter import tree_bytes
from txlab.models.attention import KVCache, LayerCache, make_cache
from txlab.models.base import BaseModel

LAYERS, HEADS, SIZE = 2, 3, 5


def filled(rows: int, width: int, seed: int = 0) -> KVCache:
    rng = np.random.default_rng(seed)
    k, v = (rows, HEADS, SIZE, width), (rows, HEADS, width, SIZE)
    return tuple(LayerCache(*(jax.numpy.asarray(rng.normal(size=shape)) for shape in (k, v))) for _ in range(LAYERS))


def row(cache: KVCache, number: int, width: int) -> list[np.ndarray]:
    """The first ``width`` tokens of a row, layer by layer."""
    return [np.asarray(a) for layer in cache for a in (layer.k[number, :, :, :width], layer.v[number, :, :width])]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("rows", "width"), [(8, 8), (2, 8), (4, 16), (4, 4)])
def test_resizing_moves_the_kept_rows_to_the_front(rows, width):
    old = filled(4, 8)
    new = resize(old, [3, 1], rows, width)
    assert cache_size(new) == (rows, width)
    common = min(8, width)
    assert same(row(new, 0, common), row(old, 3, common))
    assert same(row(new, 1, common), row(old, 1, common))


def test_copying_a_row_changes_that_row_alone():
    before = filled(4, 8)
    kept = [row(before, n, 8) for n in range(4)]
    after = copy_row(before, 2, 0)
    for number, source in enumerate((2, 1, 2, 3)):
        assert same(row(after, number, 8), kept[source])


@pytest.mark.parametrize("width", [4, 8])
def test_what_was_taken_can_be_put_elsewhere(width):
    old, new = filled(4, 8), filled(2, 16, seed=1)
    expected = [row(old, 2, width), row(new, 0, 16), row(new, 1, 16)]
    part = take_row(old, 2, width)
    assert cache_size(part) == (1, width)
    new = put_row(new, 1, part)
    assert same(row(new, 1, width), expected[0])
    assert same(row(new, 0, 16), expected[1])
    assert same([a[:, width:] for a in row(new, 1, 16)[1::2]], [a[:, width:] for a in expected[2][1::2]])


def test_sizes_come_from_a_small_set():
    assert {width_bucket(n, 8) for n in range(1, 4097)} == {128, 256, 512, 1024, 2048, 4096}
    assert {width_bucket(n, 9) for n in range(1, 1025)} == {128, 192, 256, 384, 512, 768, 1024}
    assert all(n <= width_bucket(n, 9) < max(1.5 * n, 129) for n in range(1, 4097))
    assert [rows_bucket(n, 24) for n in (1, 2, 3, 5, 9, 17, 24)] == [1, 2, 4, 8, 16, 24, 24]


def test_bytes_are_those_of_the_arrays(base: BaseModel):
    cache = make_cache(base.config, 3, 7)
    assert 3 * 7 * token_bytes(base.config, np.dtype(np.float32)) == tree_bytes(cache)
