"""An adapter's figures and curves, folded from its events."""

from __future__ import annotations

import math

import numpy as np
import pytest

from txlab.engine.adapter_history import MAX_METRICS
from txlab.engine.bus import AdapterView, EventBus
from txlab.engine.events import (
    AdapterCreated,
    AdapterRenamed,
    AdapterRewound,
    GradientDropped,
    MetricsLogged,
    PassCompleted,
    StateChanged,
    StepCompleted,
    StepsKept,
)
from txlab.lora.state import LoraConfig


@pytest.fixture
def bus() -> EventBus:
    bus = EventBus()
    bus.publish(AdapterCreated("m", "one", LoraConfig(8), 100))
    return bus


def train(bus: EventBus, first: int, last: int) -> None:
    """Steps of two passes of 20 tokens each."""
    for step in range(first, last + 1):
        bus.publish(PassCompleted("m", loss=30.0 / step, weight=10.0, tokens=20, seconds=0.5, backward=True))
        bus.publish(PassCompleted("m", loss=10.0 / step, weight=10.0, tokens=20, seconds=0.5, backward=True))
        bus.publish(StepCompleted("m", step, 1e-3, 2.0, 400))


def seen(bus: EventBus) -> AdapterView:
    (adapter,) = bus.view().adapters
    return adapter


def steps_of(bus: EventBus, metric: str) -> list[float]:
    return seen(bus).curves[metric][:, 0].tolist()


def test_a_view_is_the_same_until_something_comes(bus: EventBus):
    bus.publish(AdapterCreated("other", "two", LoraConfig(8), 100))
    train(bus, 1, 2)
    one, two = bus.view().adapters
    assert bus.view().adapters == (one, two)
    for event in (
        PassCompleted("m", 1.0, 1.0, 1, 1.0, backward=True),
        StateChanged("m", "idle"),
        AdapterRewound("m", 1),
    ):
        bus.publish(event)
        newer, same = bus.view().adapters
        assert newer is not one
        assert same is two
        one = newer


def test_loss_is_per_weight_over_all_passes_of_a_step(bus: EventBus):
    train(bus, 1, 4)
    adapter = seen(bus)
    np.testing.assert_allclose(
        adapter.curves["loss"][:, [0, 1, 3]], [(1, 40, 2.0), (2, 80, 1.0), (3, 120, 2 / 3), (4, 160, 0.5)]
    )
    assert (adapter.step, adapter.tokens, adapter.tokens_per_second, adapter.memory_bytes) == (4, 160, 40.0, 400)


def test_forward_only_passes_are_not_training(bus: EventBus):
    train(bus, 1, 1)
    bus.publish(PassCompleted("m", 99.0, 1.0, 5, 0.1, backward=False))
    assert seen(bus).loss == 2.0


def test_what_a_loss_tells_beside_is_averaged_over_the_passes_of_a_step(bus: EventBus):
    for ratio in (1.0, 2.0):
        bus.publish(PassCompleted("m", 1.0, 1.0, 5, 0.1, True, {"ratio": ratio, "loss": 99.0}))
    bus.publish(StepCompleted("m", 1, 1e-3, 2.0, 400))
    curves = seen(bus).curves
    assert {name: points[:, 3].tolist() for name, points in curves.items()} == {
        "loss": [1.0],  # not what a loss calls so
        "grad_norm": [2.0],
        "learning_rate": [1e-3],
        "ratio": [1.5],
    }


def test_a_users_metrics_are_at_the_step_that_the_adapter_is_at(bus: EventBus):
    train(bus, 1, 3)
    bus.publish(MetricsLogged("m", {"reward": 0.5}))
    bus.publish(MetricsLogged("m", {"reward": 0.7}, step=9))
    np.testing.assert_allclose(seen(bus).curves["reward"][:, [0, 1, 3]], [(3, 120, 0.5), (9, 120, 0.7)])


def test_a_metric_of_an_earlier_step_is_where_that_step_was(bus: EventBus):
    train(bus, 1, 5)
    for step in (4, 2):
        bus.publish(MetricsLogged("m", {"reward": float(step)}, step))
    curves = seen(bus).curves
    np.testing.assert_array_equal(curves["reward"][:, :3], curves["loss"][[1, 3], :3])
    assert curves["reward"][:, 3].tolist() == [2.0, 4.0]


def test_curves_are_cut_at_a_rewind_and_go_on_from_there(bus: EventBus):
    train(bus, 1, 8)
    bus.publish(MetricsLogged("m", {"reward": 0.5}))
    bus.publish(PassCompleted("m", 99.0, 1.0, 5, 0.1, True))  # accumulated, and gone with the rewind
    bus.publish(AdapterRewound("m", 5))
    assert seen(bus).step == 5
    assert steps_of(bus, "loss") == [1, 2, 3, 4, 5]
    assert steps_of(bus, "reward") == []
    train(bus, 6, 6)
    assert steps_of(bus, "loss") == [1, 2, 3, 4, 5, 6]
    assert seen(bus).curves["loss"][-1, 3] == pytest.approx(40 / 6 / 20)


def test_a_pass_whose_gradient_was_dropped_leaves_no_trace(bus: EventBus):
    train(bus, 1, 2)
    before = seen(bus)
    bus.publish(PassCompleted("m", 99.0, 1.0, 5, 0.1, True, {"ratio": 9.0}))
    assert (seen(bus).loss, seen(bus).tokens) == (99.0, 85)
    bus.publish(GradientDropped("m"))
    assert (seen(bus).loss, seen(bus).tokens, seen(bus).step) == (before.loss, before.tokens, 2)
    train(bus, 3, 3)
    assert seen(bus).curves.keys() == before.curves.keys()
    np.testing.assert_allclose(seen(bus).curves["loss"][-1, [0, 1, 3]], (3, 120, 2 / 3))
    bus.publish(GradientDropped("m"))  # nothing is there to be dropped
    assert (seen(bus).loss, seen(bus).tokens) == (pytest.approx(2 / 3), 120)


def test_a_first_pass_that_was_dropped_leaves_an_adapter_without_figures(bus: EventBus):
    bus.publish(PassCompleted("m", 99.0, 1.0, 5, 0.1, True))
    bus.publish(GradientDropped("m"))
    assert (seen(bus).loss, seen(bus).tokens, seen(bus).curves) == (None, 0, {})


def test_the_figures_after_a_rewind_are_those_of_the_step(bus: EventBus):
    bus.publish(AdapterCreated("m", "pirate", LoraConfig(8), 0))
    for step, (norm, rate) in enumerate([(5.0, 0.1), (7.0, 0.2)], 1):
        bus.publish(PassCompleted("m", 2.0, 1.0, 5, 0.1, True))
        bus.publish(StepCompleted("m", step, rate, norm, 0))
    bus.publish(AdapterRewound("m", 1))
    (view,) = bus.view().adapters
    assert (view.step, view.grad_norm, view.learning_rate) == (1, 5.0, 0.1)
    bus.publish(AdapterRewound("m", 0))
    (view,) = bus.view().adapters
    assert (view.step, view.grad_norm, view.learning_rate) == (0, None, None)


def test_the_loss_after_a_rewind_is_that_of_the_step(bus: EventBus):
    train(bus, 1, 4)
    bus.publish(PassCompleted("m", 99.0, 1.0, 5, 0.1, True))
    bus.publish(AdapterRewound("m", 2))
    assert (seen(bus).loss, seen(bus).tokens) == (1.0, 160), "what was trained was trained; the pass was not"
    bus.publish(AdapterRewound("m", 0))
    assert seen(bus).loss is None


def test_numbers_that_are_not_finite_are_kept_as_they_are(bus: EventBus):
    for value in (1.0, math.nan, math.inf):
        bus.publish(MetricsLogged("m", {"reward": value}))
    np.testing.assert_array_equal(seen(bus).curves["reward"][:, 3], [1.0, math.nan, math.inf])


def test_the_number_of_curves_is_bounded_but_what_every_adapter_has_is_there(bus: EventBus):
    for name in range(3 * MAX_METRICS):
        bus.publish(PassCompleted("m", 1.0, 1.0, 5, 0.1, True, {f"loss tells {name}": 1.0}))
        bus.publish(MetricsLogged("m", {f"user tells {name}": 1.0}))
    bus.publish(StepCompleted("m", 1, 1e-3, 2.0, 400))
    assert len(seen(bus).curves) == MAX_METRICS + 3
    assert {"loss", "grad_norm", "learning_rate"} < seen(bus).curves.keys()


def test_an_unloaded_adapter_stays_unloaded_until_it_is_made_again(bus: EventBus):
    train(bus, 1, 2)
    bus.publish(StateChanged("m", "unloaded"))
    bus.publish(StateChanged("m", "idle"))  # a sample of its snapshot has ended
    assert (seen(bus).state, seen(bus).step) == ("unloaded", 2)
    bus.publish(AdapterCreated("m", "again", LoraConfig(8), 100, step=7))
    assert (seen(bus).state, seen(bus).step, seen(bus).name) == ("idle", 7, "again")


def test_it_has_its_newest_name_and_the_steps_to_rewind_to(bus: EventBus):
    bus.publish(AdapterRenamed("m", "two"))
    bus.publish(StepsKept("m", (3, 4), 1000))
    adapter = seen(bus)
    assert (adapter.name, adapter.kept_steps, adapter.host_bytes) == ("two", (3, 4), 1000)
