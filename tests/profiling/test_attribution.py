"""Time divided among operations, by hand-made intervals."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from txlab.profiling.attribution import attribute


class Span(NamedTuple):
    start: float
    stop: float
    end: float


def test_a_moment_is_shared_by_those_that_run() -> None:
    spent = attribute([Span(0, 6, 6), Span(4, 10, 10)], 0, 10)
    assert spent.seconds == [5, 5]
    assert spent.gaps == []


def test_what_is_in_flight_has_the_moments_in_which_nothing_runs() -> None:
    spent = attribute([Span(0, 2, 10), Span(4, 7, 7)], 0, 12)
    assert spent.seconds == [2 + 2 + 3, 3]
    assert spent.gaps == [2]


def test_gaps_are_told_apart_and_lie_at_the_edges_too() -> None:
    spent = attribute([Span(3, 4, 4), Span(1, 2, 2)], 0, 6)
    assert spent.gaps == [1, 1, 2]


def test_only_the_span_counts() -> None:
    spent = attribute([Span(-5, 1, 1), Span(9, 20, 30), Span(40, 41, 42)], 0, 10)
    assert spent.seconds == [1, 1, 0]
    assert spent.gaps == [8]


@pytest.mark.parametrize("seed", range(3))
def test_parts_add_up_to_the_whole(seed: int) -> None:
    import numpy as np

    times = np.sort(np.random.default_rng(seed).uniform(-1, 11, (50, 3)), axis=1)
    times[:5, 1] = times[:5, 0]  # some have no thread at all
    spent = attribute([Span(*map(float, row)) for row in times], 0, 10)
    assert sum(spent.seconds) + sum(spent.gaps) == pytest.approx(10)


def test_nothing_ran() -> None:
    assert attribute([], 2, 5).gaps == [3]
