"""Scales, ticks and downsampling."""

from __future__ import annotations

import numpy as np
import pytest

from txlab.notebook.views.charts import Box, curve, draw_chart, spread, step_axis, thin, value_axis

BOX = Box(40, 20, 400, 200)


def test_linear_axis_holds_the_values_at_sensible_ticks() -> None:
    axis = value_axis(np.array([1.3, 2.9]))
    assert not axis.log
    assert axis.ticks == pytest.approx((1.0, 1.5, 2.0, 2.5, 3.0))
    assert (axis.low, axis.high) == pytest.approx((1.0, 3.0))


def test_axis_starts_at_zero_where_that_is_near() -> None:
    assert value_axis(np.array([0.5, 4.0])).low == 0.0


def test_wide_positive_values_get_a_log_axis() -> None:
    axis = value_axis(np.array([0.02, 5.0]))
    assert axis.log
    assert (axis.low, axis.high) == pytest.approx((0.02, 5.0))
    assert axis.ticks == pytest.approx((0.1, 1.0))
    assert axis.place(np.array([0.02, 5.0])) == pytest.approx([0.0, 1.0])


def test_negative_values_never_get_a_log_axis() -> None:
    axis = value_axis(np.array([-0.01, 100.0]))
    assert not axis.log
    assert axis.low <= -0.01


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0, 1e-12, 1e12])
def test_a_constant_has_an_axis_around_it(value: float) -> None:
    axis = value_axis(np.array([value, value]))
    assert axis.low < value < axis.high or axis.low < value <= axis.high


def test_steps_are_whole_numbers() -> None:
    assert step_axis(3).ticks == (0.0, 1.0, 2.0, 3.0)
    assert step_axis(1000).ticks[:3] == (0.0, 200.0, 400.0)


def test_thinning_keeps_ends_and_extremes() -> None:
    y = np.zeros(10_000)
    y[4321], y[8765] = 99.0, -99.0
    points = np.stack([np.linspace(0, 300, 10_000), y], axis=1)
    kept = thin(points)
    assert len(kept) < 1300
    assert {99.0, -99.0} <= set(kept[:, 1])
    assert (kept[0] == points[0]).all()
    assert (kept[-1] == points[-1]).all()
    assert (np.diff(kept[:, 0]) >= 0).all()


def test_points_that_are_not_finite_are_left_out() -> None:
    line = curve("a", "c0", [(1, 2.0), (2, float("nan")), (3, float("inf")), (4, 1.0)])
    assert line.points.tolist() == [[1.0, 2.0], [4.0, 1.0]]
    assert "nan" not in "".join(draw_chart([line], BOX, labels=True))


def test_lines_stay_inside_the_box() -> None:
    line = curve("a", "c0", [(i, 5.0 * 0.97**i) for i in range(300)])
    (drawn,) = [part for part in draw_chart([line], BOX, labels=False) if part.startswith("<polyline")]
    numbers = [pair.split(",") for pair in drawn.split('points="')[1].split('"')[0].split()]
    assert all(40 <= float(x) <= 440 and 20 <= float(y) <= 220 for x, y in numbers)


def test_no_points_is_a_hint() -> None:
    (hint,) = draw_chart([curve("a", "c0", [])], BOX, labels=True)
    assert "optim_step" in hint


def test_labels_are_moved_apart_and_kept_inside() -> None:
    placed = spread([98, 99, 100], 14, 0, 100)
    assert placed == [72, 86, 100]
    assert spread([10, 50], 14, 0, 100) == [10, 50]
