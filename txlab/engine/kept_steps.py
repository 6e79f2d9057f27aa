"""What adapters were before their latest optimizer steps, kept in host memory to be brought back."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

import jax

from txlab.lora.adapter import Adapter, tree_bytes

MOST_STATES = 512  # of all adapters together, however small they are


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    adapter: Adapter  # without a gradient
    host_bytes: int


class KeptSteps:
    """Weights and moments of adapters, by model id and step, in at most ``limit`` bytes of host memory; 0: none.

    The oldest of all adapters go first. Arrays that states share count once. Nothing writes an adapter's arrays, so
    where the device is the host keeping them is no copy; elsewhere, with ``copy``, they go to pinned memory while the
    device computes on.
    """

    def __init__(self, limit: int, copy: bool):
        self._limit = limit
        self._copy = copy
        self._states: OrderedDict[tuple[str, int], _State] = OrderedDict()  # oldest first
        self._holders: Counter[int] = Counter()  # how many states an array is in, by its id()
        self.host_bytes = 0  # of everything that is kept

    def keep(self, model_id: str, adapter: Adapter) -> set[str]:
        """Keep an adapter as it is now, instead of what was kept of this step. Returns whose kept steps changed.

        A state that alone is beyond the limit is not kept, and costs no other its place.
        """
        size = tree_bytes((adapter.weights, adapter.moments))
        if size > self._limit:
            return set()
        key = (model_id, adapter.step)
        if key in self._states:
            self._remove(key)
        self._add(key, _State(self._moved(adapter, "pinned_host"), size))
        changed = {model_id}
        while self.host_bytes > self._limit or len(self._states) > MOST_STATES:
            oldest = next(iter(self._states))
            self._remove(oldest)
            changed.add(oldest[0])
        return changed

    def get(self, model_id: str, step: int) -> Adapter:
        """A kept state, on the device. KeyError where there is none."""
        return self._moved(self._states[model_id, step].adapter, "device")

    def drop(self, model_id: str) -> None:
        """Forget all of an adapter."""
        for key in [key for key in self._states if key[0] == model_id]:
            self._remove(key)

    def steps(self, model_id: str) -> tuple[int, ...]:
        """What is kept of an adapter, in order."""
        return tuple(sorted(step for owner, step in self._states if owner == model_id))

    def bytes_of(self, model_id: str) -> int:
        """Host memory of an adapter's states, with what they share with those of others."""
        return sum(state.host_bytes for (owner, _), state in self._states.items() if owner == model_id)

    def _add(self, key: tuple[str, int], state: _State) -> None:
        for array in _arrays(state.adapter):
            self.host_bytes += 0 if self._holders[id(array)] else array.nbytes
            self._holders[id(array)] += 1
        self._states[key] = state

    def _remove(self, key: tuple[str, int]) -> None:
        for array in _arrays(self._states.pop(key).adapter):
            self._holders[id(array)] -= 1
            if not self._holders[id(array)]:
                del self._holders[id(array)]
                self.host_bytes -= array.nbytes

    def _moved(self, adapter: Adapter, memory: str) -> Adapter:
        """A copy of weights and moments in another kind of memory, or themselves. Does not wait for the copy."""
        held = adapter.weights, adapter.moments
        if self._copy:
            held = jax.tree.map(lambda array: jax.device_put(array, array.sharding.with_memory_kind(memory)), held)
        return Adapter(adapter.lora, held[0], moments=held[1])


def _arrays(adapter: Adapter) -> list[jax.Array]:
    return jax.tree.leaves((adapter.weights, adapter.moments))
