"""How an adapter begins, and its way to host memory and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from txlab.config import ModelSettings
from txlab.lora.adapter import (
    Adapter,
    Gradient,
    adapted_projections,
    from_state,
    initial_weights,
    to_state,
    tree_bytes,
    zero_gradient,
    zero_moments,
)
from txlab.lora.state import LoraConfig
from txlab.models.base import load_base
from txlab.models.config import projection_shapes
from txlab.models.mesh import replicated


@pytest.fixture(scope="module")
def place(tiny_llama: Path):
    base = load_base(ModelSettings(name=str(tiny_llama)))
    return base.config, replicated(base.mesh)


def flat(weights):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(weights)])


def test_a_is_uniform_within_its_bound_and_b_is_zero(place):
    config, placement = place
    weights = initial_weights(config, LoraConfig(rank=16, seed=3), placement)
    assert set(weights) == set(projection_shapes(config))
    for name, (n_in, n_out) in projection_shapes(config).items():
        stacked = () if name == "lm_head" else (config.num_layers,)
        a, b = weights[name]
        assert a.shape == (*stacked, n_in, 16)
        assert b.shape == (*stacked, 16, n_out)
        assert a.dtype == b.dtype == np.float32
        bound = n_in**-0.5
        assert 0.98 * bound < np.abs(a).max() <= bound
        assert abs(float(a.std()) / (bound / 3**0.5) - 1) < 0.05, "uniform on ±bound has deviation bound/√3"
        assert not np.any(b)


def test_the_seed_alone_decides(place):
    config, placement = place
    one, same = (initial_weights(config, LoraConfig(rank=8, seed=5), placement) for _ in range(2))
    other = initial_weights(config, LoraConfig(rank=8, seed=6), placement)
    assert (flat(one) == flat(same)).all()
    assert (one["q_proj"].a != other["q_proj"].a).mean() > 0.99
    mlp_only = initial_weights(config, LoraConfig(8, 5, train_attn=False, train_unembed=False), placement)
    assert set(mlp_only) == {"gate_proj", "up_proj", "down_proj"}
    assert (mlp_only["up_proj"].a == one["up_proj"].a).all(), "what else is trained changes nothing"
    free = [initial_weights(config, LoraConfig(rank=8), placement)["q_proj"].a for _ in range(2)]
    assert (free[0] != free[1]).mean() > 0.99, "without a seed each adapter is its own"
    big = initial_weights(config, LoraConfig(rank=8, seed=2**63 + 5), placement)
    assert (big["q_proj"].a != one["q_proj"].a).mean() > 0.99, "all 64 bits count"


@pytest.mark.parametrize("flags", [(True, False, False), (False, True, False), (False, False, True), (True,) * 3])
def test_train_flags_choose_the_projections(flags):
    groups = (("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj"), ("lm_head",))
    expected = tuple(name for flag, names in zip(flags, groups, strict=True) if flag for name in names)
    assert adapted_projections(LoraConfig(8, 0, *flags)) == expected


def trained(config, placement):
    adapter = Adapter(LoraConfig(rank=4, seed=1), initial_weights(config, LoraConfig(rank=4, seed=1), placement))
    moments = zero_moments(adapter.weights)
    adapter.moments = moments._replace(count=moments.count + 7, mu=jax.tree.map(lambda x: x + 0.5, moments.mu))
    return adapter


def test_to_host_and_back_is_exact(place):
    adapter = trained(*place)
    back = from_state(to_state(adapter, optimizer=True), *place)
    assert back.step == 7
    for one, two in ((adapter.weights, back.weights), (adapter.moments, back.moments)):
        assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), one, two))
    bare = from_state(to_state(adapter, optimizer=False), *place)
    assert bare.moments is None
    assert bare.step == 0


def test_a_state_that_does_not_fit_is_refused_by_name(place):
    state = to_state(trained(*place), optimizer=True)
    misshapen = dict(state.weights) | {"o_proj.b": np.zeros((2, 4, 7), np.float32)}
    with pytest.raises(ValueError, match=r"does not fit this base model: o_proj\.b"):
        from_state(dataclasses.replace(state, weights=misshapen), *place)
    short = {name: array for name, array in state.first_moment.items() if name != "lm_head.a"}
    with pytest.raises(ValueError, match=r"lm_head\.a missing"):
        from_state(dataclasses.replace(state, first_moment=short), *place)


def test_memory_is_weights_then_also_moments(place):
    config, placement = place
    weights = initial_weights(config, LoraConfig(rank=4, seed=1), placement)
    arithmetic = sum(
        4 * 4 * (n_in + n_out) * (1 if name == "lm_head" else config.num_layers)
        for name, (n_in, n_out) in projection_shapes(config).items()
    )
    adapter = Adapter(LoraConfig(rank=4), weights)
    assert adapter.memory_bytes == tree_bytes(weights) == arithmetic
    adapter.moments = zero_moments(weights)
    assert adapter.memory_bytes == 3 * arithmetic + 4
    adapter.gradient = zero_gradient(weights)
    assert adapter.memory_bytes == 4 * arithmetic + 4


@pytest.mark.parametrize("flags", [(), ("train_unembed",), ("train_attn", "train_mlp")], ids=str)
def test_a_gradient_has_the_form_of_the_weights_once_stacked(place, flags):
    lora = LoraConfig(rank=2, seed=1, **dict.fromkeys(flags, False))
    weights = initial_weights(place[0], lora, place[1])
    gradient = zero_gradient(weights)
    numbered = Gradient(
        tuple(jax.tree.map(lambda x, n=n: x + n, g) for n, g in enumerate(gradient.layers)), gradient.head
    )

    def check(array, like):
        assert array.shape == like.shape
        for n, layer in enumerate(array if array.ndim == 3 else []):
            np.testing.assert_array_equal(layer, n)

    jax.tree.map(check, numbered.stacked(), dict(weights))
