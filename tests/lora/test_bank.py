"""The bank keeps adapters apart and snapshots as they were."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from txlab.config import ModelSettings
from txlab.lora.adapter import to_state, tree_bytes
from txlab.lora.bank import AdapterBank
from txlab.lora.state import LoraConfig
from txlab.models.base import load_base
from txlab.models.mesh import replicated


@pytest.fixture(scope="module")
def base(tiny_llama: Path):
    return load_base(ModelSettings(name=str(tiny_llama)))


@pytest.fixture
def bank(base):
    return AdapterBank(base.config, replicated(base.mesh), snapshot_bytes=1 << 30)


def test_a_snapshot_costs_nothing_and_does_not_change(bank):
    adapter = bank.create("m", LoraConfig(rank=4, seed=1))
    bank.take_snapshot("s", "m")
    snapshot = bank.snapshot("s")
    assert snapshot.model_id == "m"
    assert snapshot.adapter.weights["q_proj"].a is adapter.weights["q_proj"].a
    before = np.array(adapter.weights["q_proj"].a)
    adapter.weights = jax.tree.map(lambda x: x + 1, adapter.weights)
    np.testing.assert_array_equal(bank.snapshot("s").adapter.weights["q_proj"].a, before)
    bank.drop("m")
    np.testing.assert_array_equal(bank.snapshot("s").adapter.weights["q_proj"].a, before)


def test_snapshots_of_the_same_weights_decode_as_one(bank):
    adapter = bank.create("m", LoraConfig(rank=4, seed=1))
    bank.take_snapshot("first", "m")
    bank.take_snapshot("second", "m")
    adapter.weights = jax.tree.map(lambda x: x + 1, adapter.weights)
    bank.take_snapshot("third", "m")
    assert bank.snapshot("first").adapter is bank.snapshot("second").adapter
    assert bank.snapshot("first").adapter is not bank.snapshot("third").adapter


def test_least_recently_used_snapshots_make_room(base):
    size = tree_bytes(AdapterBank(base.config, replicated(base.mesh), 0).create("x", LoraConfig(rank=4)).weights)
    bank = AdapterBank(base.config, replicated(base.mesh), snapshot_bytes=2 * size)
    for name in ("a", "b"):
        bank.create(name, LoraConfig(rank=4))
        bank.take_snapshot(name, name)
    bank.take_snapshot("a again", "a")  # shares its arrays: no new memory
    assert bank.snapshot("a")
    bank.create("c", LoraConfig(rank=4))
    bank.take_snapshot("c", "c")
    with pytest.raises(KeyError):
        bank.snapshot("b")
    assert bank.snapshot("a")
    assert bank.snapshot("c")


def test_a_taken_id_is_refused_and_a_dropped_one_is_free(bank):
    bank.create("m", LoraConfig(rank=4))
    with pytest.raises(ValueError, match="'m' exists already"):
        bank.create("m", LoraConfig(rank=4))
    bank.drop("m")
    assert "m" not in bank
    bank.create("m", LoraConfig(rank=8))
    assert bank["m"].lora.rank == 8


def test_loading_replaces_an_adapter_and_makes_snapshots(bank):
    source = bank.create("a", LoraConfig(rank=4, seed=1))
    state = to_state(source, optimizer=False)
    bank.create("b", LoraConfig(rank=8, seed=2))
    assert bank.load("b", state).lora.rank == 4
    bank.load_snapshot("s", state)
    snapshot = bank.snapshot("s")
    assert snapshot.model_id is None
    np.testing.assert_array_equal(snapshot.adapter.weights["up_proj"].a, source.weights["up_proj"].a)
    bank.drop_snapshot("s")
    with pytest.raises(KeyError):
        bank.snapshot("s")
