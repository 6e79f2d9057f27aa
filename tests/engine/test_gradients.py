"""Gradients of a run, by adapter."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from txlab.engine.gradients import Gradient, Gradients
from txlab.lora.adapter import Adapter, initial_weights
from txlab.lora.linear import HEAD
from txlab.lora.state import LoraConfig
from txlab.models.mesh import replicated


@pytest.fixture
def adapters(base) -> list[Adapter]:
    """One whose head is adapted, and one whose head is not."""
    loras = [LoraConfig(rank=2, seed=0), LoraConfig(rank=3, seed=1, train_unembed=False)]
    return [Adapter(lora, initial_weights(base.config, lora, replicated(base.mesh))) for lora in loras]


def test_an_adapter_has_one_from_when_it_is_asked_for(adapters):
    gradients = Gradients(adapters)
    assert list(gradients.totals()) == []
    first = gradients[1]
    assert gradients[1] is first
    assert [number for number, _ in gradients.totals()] == [1]
    assert gradients[0] is not first
    assert sorted(number for number, _ in gradients.totals()) == [0, 1]


def test_it_begins_as_zeros_in_the_form_of_the_weights(adapters):
    for number, adapter in enumerate(adapters):
        total = Gradients(adapters)[number].total()
        jax.tree.map(
            np.testing.assert_array_equal,
            total,
            {n: jax.tree.map(np.zeros_like, f) for n, f in adapter.weights.items()},
        )


def test_the_head_is_apart_from_the_layers(adapters):
    adapted, plain = (Gradient(adapter.weights) for adapter in adapters)
    assert adapted.head is not None
    assert HEAD not in adapted.layers
    assert adapted.total() == {**adapted.layers, HEAD: adapted.head}
    assert plain.head is None
    assert plain.total() == plain.layers


def test_a_total_is_what_it_has_become(adapters):
    gradients = Gradients(adapters)
    gradients[0].head = jax.tree.map(lambda x: x + 2, gradients[0].head)
    gradients[0].layers = jax.tree.map(lambda x: x + 1, gradients[0].layers)
    ((_, total),) = gradients.totals()
    assert {name: {float(x.mean()) for x in factors} for name, factors in total.items()} == {
        name: {2.0 if name == HEAD else 1.0} for name in adapters[0].weights
    }
