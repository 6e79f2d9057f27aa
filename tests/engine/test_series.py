"""Curves of bounded length."""

from __future__ import annotations

import numpy as np
import pytest

from txlab.engine.series import Series, Tail


def filled(values: np.ndarray, limit: int = 64) -> Series:
    series = Series(limit)
    for step, value in enumerate(values.tolist()):
        series.append(step, 10 * step, step / 2, value)
    return series


def test_series_are_bounded_and_keep_first_last_and_order():
    points = filled(-np.arange(10_000.0)).points
    assert len(points) <= 64
    assert points[0].tolist() == [0, 0, 0, 0]
    assert points[-1].tolist() == [9999, 99990, 4999.5, -9999]
    assert (np.diff(points[:, 0]) > 0).all()


def test_no_extreme_is_lost():
    values = np.sin(np.arange(20_000.0))
    values[[7777, 12_345]] = 50, -50
    points = filled(values).points
    assert (points[:, 3].max(), points[:, 3].min()) == (50, -50)
    assert points[points[:, 3] == 50][0, 0] == 7777


def test_points_that_were_handed_out_do_not_change():
    series = filled(np.arange(64.0))
    points, before = series.points, series.points.copy()
    for step in range(64, 200):
        series.append(step, 0, 0, -1)
    np.testing.assert_array_equal(points, before)


def test_a_series_is_cut_after_a_step():
    series = filled(np.arange(30.0))
    series.cut(9)
    series.append(10, 0, 0, 5)
    assert series.points[:, 0].tolist() == list(range(11))
    assert series.points[-1, 3] == 5


def test_a_late_point_is_put_where_it_belongs():
    series = filled(np.arange(0.0, 10.0))
    before = series.points
    series.append(4, 90, 9, 0.5)
    series.append(-1, 90, 9, 0.25)
    assert series.points[:, 0].tolist() == [-1, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9]
    assert series.points[6].tolist() == [4, 50, 2.5, 0.5], "behind those of its step, not behind the next one's tokens"
    assert before[:, 0].tolist() == list(range(10)), "what was handed out stays as it is"


@pytest.mark.parametrize("limit", [4, 64, 4096])
def test_points_are_in_order_of_everything_that_may_be_x(limit: int):
    random, series = np.random.default_rng(0), Series(limit)
    for _ in range(500):
        series.append(*random.integers(0, 100, 3), 1.0)
    assert (np.diff(series.points[:, :3], axis=0) >= 0).all()
    assert 2 <= len(series.points) <= limit


def test_values_that_are_no_numbers_hide_no_extreme():
    values = np.sin(np.arange(1000.0))
    values[[500, 700]] = 50, -50
    values[501::2] = np.nan
    values[0:100] = np.nan
    points = filled(values).points
    assert (np.nanmax(points[:, 3]), np.nanmin(points[:, 3])) == (50, -50)
    assert np.isnan(points[0, 3])
    assert len(points) <= 64


def test_a_tail_keeps_the_newest_and_counts_all():
    tail = Tail(4, np.int32)
    seen = []
    for start, n in ((0, 3), (3, 1), (4, 3), (7, 2), (9, 20), (29, 0), (29, 1)):
        tail.extend(np.arange(start, start + n))
        seen.append((tail.numbers, tail.numbers.copy()))
    assert tail.numbers.tolist() == [26, 27, 28, 29]
    assert tail.added == 30
    for handed_out, copy in seen:
        np.testing.assert_array_equal(handed_out, copy)
