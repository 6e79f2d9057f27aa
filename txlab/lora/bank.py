"""AdapterBank: all adapters and snapshots of one base model, each at its own size, in device memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import jax
from jax.sharding import Sharding

from txlab.lora.adapter import Adapter, from_state, initial_weights, tree_bytes
from txlab.lora.state import AdapterState, LoraConfig
from txlab.models.config import ModelConfig


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Weights that never change, for sampling. ``model_id`` is the adapter that they were taken of, if any."""

    adapter: Adapter  # weights only, shared with the adapter until its next optimizer step
    model_id: str | None


class AdapterBank:
    """Adapters by model id, snapshots by snapshot id. Not thread-safe: the engine thread owns it.

    What adapters share is replaced and never written, so none can change another, and creating or dropping one moves
    no other. Snapshots beyond ``snapshot_bytes`` are dropped, least recently used first.
    """

    def __init__(self, config: ModelConfig, placement: Sharding, snapshot_bytes: int):
        self._config = config
        self._placement = placement
        self._snapshot_bytes = snapshot_bytes
        self._adapters: dict[str, Adapter] = {}
        self._snapshots: OrderedDict[str, Snapshot] = OrderedDict()

    def create(self, model_id: str, lora: LoraConfig) -> Adapter:
        """A fresh adapter. ValueError where the id is taken."""
        if model_id in self._adapters:
            raise ValueError(f"adapter {model_id!r} exists already")
        adapter = Adapter(lora, initial_weights(self._config, lora, self._placement))
        self._adapters[model_id] = adapter
        return adapter

    def load(self, model_id: str, state: AdapterState) -> Adapter:
        """Create an adapter from a checkpoint, or replace what is there. ValueError where it does not fit."""
        adapter = from_state(state, self._config, self._placement)
        self._adapters[model_id] = adapter
        return adapter

    def put(self, model_id: str, state: Adapter) -> Adapter:
        """A model's adapter from now on: the weights and moments of ``state``, and no gradient. Costs no copy."""
        adapter = Adapter(state.lora, state.weights, moments=state.moments)
        self._adapters[model_id] = adapter
        return adapter

    def __getitem__(self, model_id: str) -> Adapter:
        """The adapter. KeyError where there is none."""
        return self._adapters[model_id]

    def __contains__(self, model_id: str) -> bool:
        """Whether there is such an adapter."""
        return model_id in self._adapters

    @property
    def held(self) -> Iterable[Adapter]:
        """All adapters, and those that snapshots froze; some of these share their weights."""
        return (*self._adapters.values(), *dict.fromkeys(snapshot.adapter for snapshot in self._snapshots.values()))

    def drop(self, model_id: str) -> None:
        """Forget an adapter and free its memory; its snapshots stay."""
        self._adapters.pop(model_id, None)

    def take_snapshot(self, snapshot_id: str, model_id: str) -> None:
        """Keep the present weights of an adapter. Costs no copy: an optimizer step makes new arrays.

        Snapshots of the same weights share one frozen adapter, so that their samples decode as one tenant's.
        """
        adapter = self._adapters[model_id]
        known = (s.adapter for s in self._snapshots.values() if s.adapter.weights is adapter.weights)
        frozen = next(known, None) or Adapter(adapter.lora, adapter.weights)
        self._keep(snapshot_id, Snapshot(frozen, model_id))

    def load_snapshot(self, snapshot_id: str, state: AdapterState) -> None:
        """Bring a checkpoint's weights in as a snapshot. ValueError where it does not fit."""
        adapter = from_state(state, self._config, self._placement)
        self._keep(snapshot_id, Snapshot(Adapter(adapter.lora, adapter.weights), None))

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """A snapshot, which becomes the most recently used one. KeyError where it is gone."""
        self._snapshots.move_to_end(snapshot_id)
        return self._snapshots[snapshot_id]

    def drop_snapshot(self, snapshot_id: str) -> None:
        """Free a snapshot."""
        self._snapshots.pop(snapshot_id, None)

    def _keep(self, snapshot_id: str, snapshot: Snapshot) -> None:
        self._snapshots[snapshot_id] = snapshot
        while len(self._snapshots) > 1 and self._held_bytes() > self._snapshot_bytes:
            self._snapshots.popitem(last=False)

    def _held_bytes(self) -> int:
        """Memory of the snapshots; arrays that several share count once."""
        leaves = {id(leaf): leaf for s in self._snapshots.values() for leaf in jax.tree.leaves(s.adapter.weights)}
        return tree_bytes(list(leaves.values()))
