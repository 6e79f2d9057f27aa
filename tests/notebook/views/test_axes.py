"""Ranges and ticks, and how they are written."""

from __future__ import annotations

import numpy as np
import pytest

from txlab.notebook.views.axes import count, duration, value_axis, value_label, x_axis, x_label


def test_linear_axis_holds_the_values_at_sensible_ticks() -> None:
    axis = value_axis(np.array([1.3, 2.9]))
    assert not axis.log
    assert axis.ticks == pytest.approx((1.5, 2.0, 2.5, 3.0))
    assert axis.low < 1.3
    assert axis.high == pytest.approx(3.0)


def test_axis_starts_at_zero_where_that_is_near() -> None:
    assert value_axis(np.array([0.5, 4.0])).low == 0.0


@pytest.mark.parametrize("values", [(0.3, 6.4), (-0.3, 1.2), (100.0, 101.0), (-5.0, -4.1)])
def test_values_lie_within_and_ticks_too(values: tuple[float, float]) -> None:
    axis = value_axis(np.array(values))
    assert ((axis.place(np.array(values)) >= 0) & (axis.place(np.array(values)) <= 1)).all()
    assert ((axis.place(np.array(axis.ticks)) >= 0) & (axis.place(np.array(axis.ticks)) <= 1)).all()
    assert len(axis.ticks) >= 3


def test_wide_positive_values_get_a_log_axis() -> None:
    axis = value_axis(np.array([0.02, 5.0]))
    assert axis.log
    assert (axis.low, axis.high) == pytest.approx((0.02, 5.0))
    assert axis.ticks == pytest.approx((0.1, 1.0))
    assert axis.place(np.array([0.02, 5.0])) == pytest.approx([0.0, 1.0])


def test_the_reader_decides_on_the_scale() -> None:
    assert value_axis(np.array([1.0, 2.0]), log=True).log
    assert not value_axis(np.array([0.001, 5.0]), log=False).log


@pytest.mark.parametrize("log", [None, True])
def test_negative_values_never_get_a_log_axis(log: bool | None) -> None:
    axis = value_axis(np.array([-0.01, 100.0]), log)
    assert not axis.log
    assert axis.low <= -0.01


@pytest.mark.parametrize("log", [None, True, False])
@pytest.mark.parametrize("value", [0.0, 1.0, 2.5, -3.0, 1e-12, 1e12])
def test_a_constant_has_an_axis_around_it(value: float, log: bool | None) -> None:
    axis = value_axis(np.array([value, value]), log)
    assert axis.low < axis.high
    assert axis.low <= value <= axis.high


def test_steps_are_whole_numbers() -> None:
    assert x_axis("step", 1, 3).ticks == (0.0, 1.0, 2.0, 3.0)
    assert x_axis("step", 1, 1000).ticks[:3] == (0.0, 200.0, 400.0)


def test_curves_that_start_late_fill_the_axis() -> None:
    axis = x_axis("step", 1001, 1100)
    assert axis.low == 1000
    assert x_axis("step", 7, 7).low < 7 <= x_axis("step", 7, 7).high


@pytest.mark.parametrize(
    ("last", "ticks"), [(0.1, 2), (42, 10), (200, 30), (4000, 600), (20_000, 3600), (10 * 86400, 2 * 86400)]
)
def test_time_has_ticks_at_round_times(last: float, ticks: float) -> None:
    axis = x_axis("time", 0.0, last)
    assert len(axis.ticks) <= 9
    assert last <= 1 or axis.ticks[1] == ticks


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (83, "1:23"), (3599, "59:59"), (7200, "2 h"), (9000, "2 h 30")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text == x_label("time", seconds)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (250_000, "250k"), (1_500_000, "1.5M"), (2e9, "2B")]
)
def test_counts(number: float, text: str) -> None:
    assert count(number) == text == x_label("tokens", number)


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.25, "0.25"), (1e-5, "1e-5"), (2e6, "2e6"), (-3.0, "-3")])
def test_values(value: float, text: str) -> None:
    assert value_label(value) == text
