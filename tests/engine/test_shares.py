"""Who comes next."""

from __future__ import annotations

import pytest

from txlab.engine.shares import Shares


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(shares: Shares, clock: Clock, seconds: dict[str, float], ready: dict[str, bool], steps: int) -> list[str]:
    """Who had the device in each of so many steps, each of the length of its kind."""
    order = []
    for _ in range(steps):
        name = shares.next(ready)
        with shares.spend(name):
            clock.now += seconds[name]
        order.append(name)
    return order


BOTH = {"sampling": True, "training": True}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_time_is_shared_as_the_weights_say(share):
    clock = Clock()
    shares = Shares({"sampling": share, "training": 1 - share}, clock)
    order = run(shares, clock, {"sampling": 0.1, "training": 1.5}, BOTH, 2000)
    sampled, trained = 0.1 * order.count("sampling"), 1.5 * order.count("training")
    assert sampled / (sampled + trained) == pytest.approx(share, abs=0.02)
    assert shares.busy_seconds == pytest.approx(sampled + trained)


def test_who_comes_during_a_long_piece_catches_up_at_once():
    clock = Clock()
    shares = Shares({"sampling": 0.5, "training": 0.5}, clock)
    run(shares, clock, {"training": 4.0}, {"sampling": False, "training": True}, 50)
    assert run(shares, clock, {"sampling": 0.3, "training": 4.0}, BOTH, 12) == ["sampling"] * 12


def test_who_had_nothing_to_do_is_owed_no_more_than_the_piece_at_hand():
    clock = Clock()
    shares = Shares({"sampling": 0.5, "training": 0.5}, clock)
    run(shares, clock, {"training": 4.0}, {"sampling": False, "training": True}, 50)
    order = run(shares, clock, {"sampling": 0.3, "training": 4.0}, BOTH, 15)
    assert "training" in order


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5])
def test_nobody_gets_all(share):
    with pytest.raises(ValueError, match="greater than 0"):
        Shares({"sampling": share, "training": 1 - share})


def test_nobody_is_ready():
    assert Shares({"sampling": 0.5, "training": 0.5}).next({"sampling": False, "training": False}) is None
