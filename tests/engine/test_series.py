"""Curves of bounded length."""

from __future__ import annotations

import numpy as np

from txlab.engine.series import Series


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
