"""Several adapters in one batch are each as if alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txlab.lora.adapter import Adapter, Factors
from txlab.lora.linear import HEAD, LoraProjector, combine, entry_gradient, head_of_row
from txlab.lora.state import LoraConfig
from txlab.models.decoder import base_projector

L, IN, OUT, VOCABULARY = 3, 10, 14, 50
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(IN, OUT)).astype(np.float32)
EMBEDDING = RNG.normal(size=(VOCABULARY, IN)).astype(np.float32)
X = RNG.normal(size=(4, 5, IN)).astype(np.float32)


def adapter(rank: int, *names: str) -> Adapter:
    weights = {}
    for name in names:
        stacked, n_out = ((), VOCABULARY) if name == HEAD else ((L,), OUT)
        a = jnp.asarray(RNG.normal(size=(*stacked, IN, rank)), jnp.float32)
        weights[name] = Factors(a, jnp.asarray(RNG.normal(size=(*stacked, rank, n_out)), jnp.float32))
    return Adapter(LoraConfig(rank=rank), weights)


MEMBERS = [adapter(2, "q_proj", HEAD), None, adapter(5, "q_proj"), adapter(3, "v_proj", HEAD)]


def reference(member: Adapter | None, name: str, x, kernel):
    y = x @ kernel
    if member is None or name not in member.weights:
        return y
    a, b = member.weights[name]
    a, b = (a, b) if name == HEAD else (a[1], b[1])
    return y + 32 / member.lora.rank * (x @ np.asarray(a)) @ np.asarray(b)


def layer(project: LoraProjector, index: int):
    return jax.tree.map(lambda array: array[index], project.layers)


@pytest.mark.parametrize("name", ["q_proj", "v_proj", "up_proj"])
def test_each_row_gets_its_own_adapter(name):
    project = LoraProjector(combine(MEMBERS, 4), jnp.array([2, 0, 1, 3]))
    y = project(name, X, KERNEL, layer(project, 1))
    for row, member in enumerate([2, 0, 1, 3]):
        np.testing.assert_allclose(y[row], reference(MEMBERS[member], name, X[row], KERNEL), rtol=2e-5, atol=2e-5)


def test_one_adapter_alone_is_not_stacked():
    alone = combine([MEMBERS[2]], 1)
    assert not alone.stacked
    assert alone.weights["q_proj"].a is MEMBERS[2].weights["q_proj"].a, "no copy is made"
    project = LoraProjector(alone, jnp.zeros(4, jnp.int32))
    y = project("q_proj", X, KERNEL, layer(project, 1))
    np.testing.assert_allclose(y, reference(MEMBERS[2], "q_proj", X, KERNEL), rtol=2e-5, atol=2e-5)
    assert combine([None], 1) is None


def test_the_head():
    adapters = combine(MEMBERS, 4)
    logits = LoraProjector(adapters, jnp.array([0, 1, 2, 3])).head(X, EMBEDDING)
    for row, member in enumerate(MEMBERS):
        expected = reference(member, HEAD, X[row], EMBEDDING.T)
        np.testing.assert_allclose(logits[row], expected, rtol=2e-5, atol=2e-5)
        (a, b), scale = head_of_row(adapters, jnp.int32(row))
        own = base_projector.head(X[row], EMBEDDING) + (X[row] @ a * scale) @ b
        np.testing.assert_allclose(own, expected, rtol=2e-5, atol=2e-5)
    assert head_of_row(combine([MEMBERS[2]], 1), jnp.int32(0)) is None
    assert head_of_row(None, jnp.int32(0)) is None


def test_gradients_come_back_at_each_adapters_rank():
    rows = jnp.array([0, 2, 2, 3])

    def total(weights, adapters, rows):
        project = LoraProjector(dataclasses.replace(adapters, weights=weights), rows)
        out = sum((project(n, X, KERNEL, layer(project, 1)) ** 2).sum() for n in ("q_proj", "v_proj"))
        return out + (project.head(X, EMBEDDING) ** 2).sum()

    together = combine(MEMBERS, 4)
    gradient = jax.grad(total)(together.weights, together, rows)
    for entry in (0, 2, 3):
        member = MEMBERS[entry]
        own = entry_gradient(gradient, member, entry, stacked=True)
        alone = combine([member], 1)

        def masked(weights, alone=alone, entry=entry):
            project = LoraProjector(dataclasses.replace(alone, weights=weights), rows)
            mine = np.flatnonzero(np.asarray(rows) == entry)
            x = X[mine]
            out = sum((project(n, x, KERNEL, layer(project, 1)) ** 2).sum() for n in ("q_proj", "v_proj"))
            return out + (project.head(x, EMBEDDING) ** 2).sum()

        expected = jax.grad(masked)(alone.weights)
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, dict(member.weights))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-2), own, expected)
