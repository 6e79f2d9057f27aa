"""Charts: every curve within its box, thinned to what can be seen, and with a word where there is none."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.notebook.synthetic import frame, view
from txlab.notebook.views.charts import (
    FINE,
    MAX_POINTS,
    Box,
    ChartOptions,
    board_chart,
    draw_chart,
    loss_spark,
    spread,
)
from txlab.notebook.views.curves import Curve, curve
from txlab.notebook.views.frame import BoardOptions

BOX = Box(40, 20, 400, 200)


def corners(part: str) -> np.ndarray:
    """The points of a path in px, (n, 2)."""
    left, top = map(int, re.search(r"M(-?\d+) (-?\d+)", part).groups())
    moves = np.array(list(map(int, re.findall(r"-?\d+", part.split("l", 1)[1].split('"')[0])))).reshape(-1, 2)
    return np.cumsum(np.vstack([[left, top], moves]), axis=0) / FINE


def drawn(curves: list[Curve], options: ChartOptions | None = None, css: str = "") -> list[np.ndarray]:
    lines = [part for part in draw_chart(curves, BOX, options) if part.startswith("<path") and " line" in part]
    return [corners(part.split(" d=", 1)[1]) for part in lines if ("faint" in part) == (css == "faint")]


def falling(size: int, name: str = "a") -> Curve:
    return curve(name, "c0", np.array([(i, 5.0 * 0.97**i + 0.1) for i in range(size)]))


def test_points_that_are_not_finite_are_left_out() -> None:
    line = curve("a", "c0", np.array([(1, 2.0), (2, float("nan")), (3, float("inf")), (4, 1.0)]))
    assert line.points.tolist() == [[1.0, 2.0], [4.0, 1.0]]
    assert "nan" not in "".join(draw_chart([line], BOX))


def test_lines_stay_inside_the_box_and_end_where_the_curve_does() -> None:
    (line,) = drawn([falling(300)], ChartOptions(log=False))
    assert (line >= [39.9, 19.9]).all()
    assert (line <= [440.1, 220.1]).all()
    assert line[-1, 0] == pytest.approx(440, abs=0.1)


def test_a_single_point_is_a_dot() -> None:
    assert any(part.startswith("<circle") for part in draw_chart([falling(1)], BOX))


def test_a_spike_among_a_hundred_thousand_steps_is_seen() -> None:
    values = np.ones(100_000)
    values[54_321] = 7.0
    (line,) = drawn([curve("a", "c0", np.column_stack([np.arange(100_000), values]))], ChartOptions(log=False))
    assert len(line) < 2000
    assert line[:, 1].min() < 50  # near the top, while all else lies at the bottom
    assert np.median(line[:, 1]) > 180


def test_many_long_curves_share_a_budget_and_keep_their_spikes() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 2, (64, 4096))
    values[np.arange(64), rng.integers(0, 4096, 64)] = 9.0
    lines = drawn([curve(f"{i}", "c0", np.column_stack([np.arange(4096), row])) for i, row in enumerate(values)])
    assert sum(map(len, lines)) < 1.2 * MAX_POINTS
    assert all(line[:, 1].min() < 50 for line in lines)


def test_smoothing_is_bold_over_the_faint_curve() -> None:
    values = np.tile([1.0, 3.0], 200)
    raw = curve("a", "c0", np.column_stack([np.arange(400), values]))
    options = ChartOptions(smoothing=0.95)
    ((faint,), (bold,)) = drawn([raw], options, "faint"), drawn([raw], options)
    assert np.ptp(faint[:, 1]) > 100
    assert np.ptp(bold[200:, 1]) < 20
    assert "2.0" in draw_chart([raw], BOX, options)[-1]  # the label tells the smoothed value


def test_a_log_axis_leaves_out_what_it_cannot_show() -> None:
    line = curve("a", "c0", np.array([(0, 1.0), (1, 0.0), (2, -1.0), (3, 2.0)]))
    assert "log scale" in "".join(draw_chart([line], BOX, ChartOptions(log=True)))
    assert len(drawn([line], ChartOptions(log=True))[0]) == 2
    never = curve("a", "c0", np.array([(0, -1.0), (1, -2.0)]))
    assert "log scale" not in "".join(draw_chart([never], BOX, ChartOptions(log=True)))


@pytest.mark.parametrize(
    ("x", "axis", "tick"), [("step", "step", "40"), ("tokens", "trained tokens", "4k"), ("time", "time", "1:00")]
)
def test_the_axis_is_what_was_asked_for(x: str, axis: str, tick: str) -> None:
    options = BoardOptions(metric="reward", x=x)  # type: ignore[arg-type]
    svg = "".join(board_chart(frame(1, 100, options=options), BOX))
    assert f">{axis}</text>" in svg
    assert f">{tick}</text>" in svg
    assert ">reward</text>" in svg


def test_a_hint_says_what_to_do_for_a_curve() -> None:
    def hint(**options: object) -> str:
        (text,) = board_chart(frame(2, options=BoardOptions(**options)), BOX)  # type: ignore[arg-type]
        return text

    assert "optim_step" in hint(metric="grad_norm")
    assert "lab.log(adapter, kl=...)" in hint(metric="kl")
    assert "hidden" in hint(hidden=frozenset(a.model_id for a in view(2).adapters))
    assert "&lt;b&gt;" in hint(metric="<b>")


def test_names_of_curves_are_escaped() -> None:
    assert "<b>" not in "".join(draw_chart([falling(3, "<b>")], BOX, ChartOptions(title="<b>")))


def test_labels_are_moved_apart_and_kept_inside() -> None:
    placed = spread([98, 99, 100], 14, 0, 100)
    assert placed == [72, 86, 100]
    assert spread([10, 50], 14, 0, 100) == [10, 50]


def test_a_sparkline_fills_its_space_and_keeps_a_spike() -> None:
    (adapter,) = view(1, 4096, spike=50.0).adapters
    line = corners(f'"{loss_spark(adapter, 56, 20)}"') * FINE
    assert line.min(axis=0).tolist() == [0, 0]
    assert line.max(axis=0).tolist() == [56, 20]
    assert len(line) < 80
    assert loss_spark(view(1, 1).adapters[0], 56, 20) == ""
