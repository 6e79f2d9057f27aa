"""Past states of adapters under a budget of host memory."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from txlab.engine import kept_steps
from txlab.engine.kept_steps import KeptSteps
from txlab.lora.adapter import Adapter, Factors
from txlab.lora.state import LoraConfig

ARRAY = 400  # bytes of each array of ``at``; a count of steps takes 4
STATE = 6 * ARRAY + 4


def at(step: int, value: float = 0.0) -> Adapter:
    """An adapter of six arrays of 100 numbers after so many steps."""

    def weights() -> dict[str, Factors]:
        return {"q_proj": Factors(*(jax.device_put(np.full((1, 10, 10), value + step, np.float32)) for _ in "ab"))}

    moments = optax.ScaleByAdamState(count=jax.device_put(np.int32(step)), mu=weights(), nu=weights())
    return Adapter(LoraConfig(rank=10), weights(), moments=moments)


def first(adapter: Adapter) -> float:
    return float(adapter.weights["q_proj"].a[0, 0, 0])


@pytest.mark.parametrize("copy", [False, True])
def test_a_step_comes_back_as_it_was(copy):
    kept = KeptSteps(10 * STATE, copy)
    adapters = [at(step) for step in (3, 4)]
    for adapter in adapters:
        assert kept.keep("a", adapter) == {"a"}
    assert kept.steps("a") == (3, 4)
    assert kept.bytes_of("a") == kept.host_bytes == 2 * STATE
    back = kept.get("a", 3)
    assert (first(back), back.step, back.lora, back.gradient) == (3.0, 3, LoraConfig(rank=10), None)
    assert back.weights["q_proj"].a.sharding.memory_kind == jax.devices()[0].default_memory().kind
    assert (back.weights["q_proj"].a is adapters[0].weights["q_proj"].a) != copy
    for missing in (("a", 5), ("b", 3)):
        with pytest.raises(KeyError):
            kept.get(*missing)


def test_what_fits_exactly_is_kept_and_steps_are_in_order():
    kept = KeptSteps(2 * STATE, copy=False)
    assert KeptSteps(STATE, copy=False).keep("a", at(0)) == {"a"}
    for step in (5, 2):
        kept.keep("a", at(step))
    assert kept.steps("a") == (2, 5)
    kept.drop("a")
    assert (kept.host_bytes, len(kept._holders)) == (0, 0)


def test_the_oldest_of_all_adapters_go_first():
    kept = KeptSteps(3 * STATE, copy=False)
    for model_id, step in (("a", 0), ("b", 7), ("a", 1)):
        assert kept.keep(model_id, at(step)) == {model_id}
    assert kept.keep("b", at(8)) == {"a", "b"}
    assert (kept.steps("a"), kept.steps("b")) == ((1,), (7, 8))
    assert kept.keep("b", at(9)) == {"b"}
    assert (kept.steps("a"), kept.steps("b")) == ((1,), (8, 9))
    assert kept.host_bytes == 3 * STATE


def test_a_step_that_is_taken_again_replaces_the_first():
    kept = KeptSteps(3 * STATE, copy=False)
    for adapter in (at(1), at(2), at(1, value=0.5)):
        kept.keep("a", adapter)
    assert first(kept.get("a", 1)) == 1.5
    assert kept.host_bytes == 2 * STATE
    kept.keep("a", at(3))
    kept.keep("a", at(4))
    assert kept.steps("a") == (1, 3, 4), "step 2 had been kept for longest"


def test_arrays_that_states_share_count_once():
    kept = KeptSteps(10 * STATE, copy=False)
    adapter = at(1)
    kept.keep("a", adapter)
    kept.keep("fork", adapter)
    assert kept.host_bytes == kept.bytes_of("a") == kept.bytes_of("fork") == STATE
    kept.drop("a")
    assert (kept.host_bytes, kept.steps("a"), kept.steps("fork")) == (STATE, (), (1,))
    kept.drop("fork")
    assert kept.host_bytes == 0


@pytest.mark.parametrize("limit", [0, STATE - 1])
def test_what_does_not_fit_is_not_kept_and_drives_nothing_out(limit):
    kept = KeptSteps(limit, copy=False)
    small = Adapter(LoraConfig(rank=10), at(0).weights)
    kept.keep("small", small)
    assert kept.keep("a", at(1)) == set()
    assert kept.steps("a") == ()
    assert kept.steps("small") == ((0,) if limit else ())


def test_however_small_they_are_they_are_not_many(monkeypatch):
    monkeypatch.setattr(kept_steps, "MOST_STATES", 2)
    kept = KeptSteps(10 * STATE, copy=False)
    for step in range(4):
        kept.keep("a", at(step))
    assert kept.steps("a") == (2, 3)
