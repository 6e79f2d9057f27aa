"""Several adapters in one batch are each as if alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from txlab.lora import adapter_set
from txlab.lora.adapter import HEAD, Adapter, Factors
from txlab.lora.adapter_set import combine
from txlab.lora.linear import LoraProjector, adapted_gradient
from txlab.lora.state import LoraConfig

L, IN, OUT, VOCABULARY = 3, 10, 14, 50
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(OUT, IN)).astype(np.float32)
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
    y = x @ kernel.T
    if member is None or name not in member.weights:
        return y
    a, b = member.weights[name]
    a, b = (a, b) if name == HEAD else (a[1], b[1])
    return y + 32 / member.lora.rank * (x @ np.asarray(a)) @ np.asarray(b)


def combined(members, entries) -> LoraProjector:
    """The projector of rows with these entries."""
    adapters = combine(members, L, SingleDeviceSharding(jax.devices()[0]))
    return LoraProjector(adapters.layers, adapters.head, adapters.routes(entries))


@pytest.fixture(params=[False, True], ids=["side by side", "stacked"])
def layout(request, monkeypatch) -> None:
    if request.param:
        monkeypatch.setattr(adapter_set, "SIDE_BY_SIDE", 0)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("name", ["q_proj", "v_proj", "up_proj"])
@pytest.mark.parametrize("entries", [[2, 0, 1, 3], [3, 2, 2, 2], [2, 2, 2, 2], [1, 1, 1, 1]])
def test_each_row_gets_its_own_adapter(name, entries):
    y = combined(MEMBERS, entries).layer(1)(name, X, KERNEL)
    for row, member in enumerate(entries):
        np.testing.assert_allclose(y[row], reference(MEMBERS[member], name, X[row], KERNEL), rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("layout")
def test_a_row_of_nobody_in_the_set_goes_through_the_base():
    y = combined(MEMBERS, [-1, 2, -1, -1]).layer(1)("q_proj", X, KERNEL)
    np.testing.assert_allclose(y[::2], X[::2] @ KERNEL.T, rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("layout")
def test_one_adapter_alone_is_for_all_rows():
    adapters = combine([MEMBERS[2]], L, SingleDeviceSharding(jax.devices()[0]))
    assert adapters.routes([0, 0]) is None
    y = combined([MEMBERS[2]], [0] * 4).layer(1)("q_proj", X, KERNEL)
    np.testing.assert_allclose(y, reference(MEMBERS[2], "q_proj", X, KERNEL), rtol=2e-5, atol=2e-5)


def test_the_base_alone_has_no_set():
    assert combine([None], L, SingleDeviceSharding(jax.devices()[0])) is None


def test_columns_are_as_many_as_the_ranks_sum_up_to_rounded_up():
    adapters = combine(MEMBERS, L, SingleDeviceSharding(jax.devices()[0]))
    assert adapters.owner.tolist() == [0] * 2 + [2] * 5 + [3] * 3 + [-1] * 6
    assert [factors.a.shape for factors in adapters.layers[0].values()] == [(16, IN), (16, IN)]
    assert adapters.routes([1]).kept.sum() == 0, "the base has none"


def test_many_columns_are_stacked_at_the_highest_rank_rounded_up():
    members = [adapter(rank, "q_proj") for rank in (20, 40, 5)]
    adapters = combine([None, *members], L, SingleDeviceSharding(jax.devices()[0]))
    assert adapters.owner.tolist() == [1, 2, 3, -1]
    assert adapters.layers[0]["q_proj"].a.shape == (4, 64, IN)
    rows, places = adapters.routes([3, 0, 1, 3, 3])
    assert rows.tolist() == [[2, 0, 0, 0], [0] * 4, [0, 3, 4, 0], [0] * 4], "few sizes: three rows have four slots"
    assert places.tolist() == [8, 16, 0, 9, 10]
    rows, places = adapters.routes([-1, -1, -1, 2])
    assert (rows.shape, places.tolist()) == ((4, 1), [4, 4, 4, 1]), "rows of nobody take no slots"


@pytest.mark.usefixtures("layout")
def test_an_adapter_that_is_not_finite_harms_no_other():
    broken = adapter(2, "q_proj")
    broken.weights["q_proj"] = Factors(broken.weights["q_proj"].a + np.inf, broken.weights["q_proj"].b + np.nan)
    y = combined([broken, MEMBERS[2], None], [0, 1, 1, 2]).layer(1)("q_proj", X, KERNEL)
    np.testing.assert_allclose(y[1:3], reference(MEMBERS[2], "q_proj", X[1:3], KERNEL), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(y[3], X[3] @ KERNEL.T, rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("layout")
def test_the_head():
    logits = combined(MEMBERS, [0, 1, 2, 3]).head(X, EMBEDDING)
    for row, member in enumerate(MEMBERS):
        np.testing.assert_allclose(logits[row], reference(member, HEAD, X[row], EMBEDDING), rtol=2e-5, atol=2e-5)
    alone = combined([MEMBERS[3]], [0]).head(X[3:], EMBEDDING)
    np.testing.assert_allclose(alone[0], reference(MEMBERS[3], HEAD, X[3], EMBEDDING), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_is_that_of_the_plain_formula(dtype):
    (a, b), scale = (array[1] for array in MEMBERS[2].weights["q_proj"]), MEMBERS[2].scale
    x, kernel = X.reshape(-1, IN).astype(dtype), jnp.asarray(KERNEL, dtype)
    dy = jnp.asarray(RNG.normal(size=(len(x), OUT)), dtype)

    def plain(x, factors):
        wide = x.astype(jnp.float32)
        y = wide @ kernel.astype(jnp.float32).T + (wide @ factors.a) @ factors.b * scale
        return (y * dy.astype(jnp.float32)).sum()

    expected = jax.grad(plain, argnums=(0, 1))(x, Factors(a, b))
    found = adapted_gradient(x, kernel, Factors(a, b), scale, dy)
    tolerance = 1e-4 if dtype == jnp.float32 else 0.5
    assert found[0].dtype == dtype
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=2e-2, atol=tolerance), found, expected)
