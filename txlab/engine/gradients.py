"""Gradients while they are added up, apart from what the adapters have accumulated until a run is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from txlab.lora.adapter import Adapter, Weights, zeros_like
from txlab.lora.linear import HEAD


class Gradient:
    """That of one adapter, layers and head apart, as programs take them."""

    def __init__(self, weights: Weights):
        zeros = dict(zeros_like(weights))
        self.head = zeros.pop(HEAD, None)
        self.layers: Weights = zeros

    def total(self) -> Weights:
        """All of it, in the form of the adapter's weights."""
        return {**self.layers, **({} if self.head is None else {HEAD: self.head})}


class Gradients:
    """Those of a run's adapters, by their number, each from when it is first asked for; of one thread."""

    def __init__(self, adapters: Sequence[Adapter]):
        self._adapters = adapters
        self._found: dict[int, Gradient] = {}

    def __getitem__(self, adapter: int) -> Gradient:
        if adapter not in self._found:
            self._found[adapter] = Gradient(self._adapters[adapter].weights)
        return self._found[adapter]

    def totals(self) -> Iterator[tuple[int, Weights]]:
        """What was asked for, by adapter."""
        return ((adapter, gradient.total()) for adapter, gradient in self._found.items())
