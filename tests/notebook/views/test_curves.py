"""Smoothing against the definition, and thinning that loses nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.notebook.synthetic import view
from txlab.notebook.views.curves import adapter_curves, smooth, thin
from txlab.notebook.views.frame import BoardOptions


def moving_average(values: list[float], factor: float) -> list[float]:
    """The definition, value by value."""
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = factor * total + value, factor * weight + 1.0
        means.append(total / weight)
    return means


@pytest.mark.parametrize("factor", [0.0, 0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000])
def test_smoothing_is_the_moving_average(factor: float, size: int) -> None:
    values = np.random.default_rng(size).standard_normal(size) * 100
    assert smooth(values, factor) == pytest.approx(moving_average(values.tolist(), factor), abs=1e-9)


def test_a_constant_stays_what_it_is() -> None:
    assert smooth(np.full(50, 3.0), 0.99) == pytest.approx(np.full(50, 3.0))


def test_thinning_keeps_ends_and_extremes() -> None:
    y = np.zeros(100_000)
    y[43_210], y[87_650] = 99.0, -99.0
    points = np.stack([np.linspace(0, 300, 100_000), y], axis=1)
    kept = thin(points)
    assert len(kept) < 1300
    assert {99.0, -99.0} <= set(kept[:, 1])
    assert (kept[0] == points[0]).all()
    assert (kept[-1] == points[-1]).all()
    assert (np.diff(kept[:, 0]) >= 0).all()


def test_every_column_keeps_its_extremes() -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([np.sort(rng.uniform(0, 50, 5000)), rng.standard_normal(5000)])
    kept = thin(points, width=5.0)
    for column in range(10):
        inside, left = (p[(p[:, 0] // 5) == column, 1] for p in (points, kept))
        assert (left.min(), left.max()) == (inside.min(), inside.max())
        assert len(left) <= 4


def test_few_points_stay_as_they_are() -> None:
    points = np.array([[0.0, 1.0], [10.0, 2.0]])
    assert thin(points) is points
    assert len(thin(np.empty((0, 2)))) == 0


def test_curves_are_those_that_the_options_ask_for() -> None:
    adapters = view(3, points=5).adapters
    shown = adapter_curves(adapters, BoardOptions("reward", "time", hidden=frozenset({adapters[1].model_id})))
    assert [(c.name, c.color) for c in shown] == [("adapter-00", "c0"), ("adapter-02", "c2")]
    assert shown[0].points[:, 0].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert (shown[0].points[:, 1] < 0).all()
    assert adapter_curves(adapters, BoardOptions("kl")) == []
