"""The multi-adapter linear layer: the one seam where adapters enter the base model and kernels are swapped.

One adapter is applied to all rows without any gather; several are stacked, ranks padded to the largest, and each
row of the batch gathers its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from txlab.lora.adapter import Adapter, Factors, Weights
from txlab.models.config import UNEMBED
from txlab.models.decoder import base_projector

(HEAD,) = UNEMBED


@partial(jax.tree_util.register_dataclass, data_fields=["weights", "scale"], meta_fields=["stacked"])
@dataclass(frozen=True)
class AdapterSet:
    """The adapters of one device batch.

    ``weights`` holds one adapter's factors as they are, or, where ``stacked``, G of them: a (L, G, in, R) and
    b (L, G, R, out), for the head (G, in, R) and (G, R, out). ``scale`` is () or (G,).
    """

    weights: Weights
    scale: Any
    stacked: bool


@dataclass(frozen=True)
class LoraProjector:
    """Every linear layer of the base plus the low-rank product of each row's adapter.

    ``rows`` (B,) int32 says which of the stacked adapters a row uses; one adapter alone needs none.
    """

    adapters: AdapterSet
    rows: jax.Array

    @property
    def layers(self) -> Weights:
        """The factors that have a layer axis, scanned along with the base's weights."""
        return {name: factors for name, factors in self.adapters.weights.items() if name != HEAD}

    def __call__(self, name: str, x: jax.Array, kernel: jax.Array, layer: Any) -> jax.Array:
        """X (B, T, in), kernel (in, out) -> (B, T, out)."""
        y = x @ kernel
        return y + self._delta(x, layer[name]).astype(y.dtype) if name in layer else y

    def head(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        """Hidden (B, T, D), embedding (V, D) -> float32 logits (B, T, V)."""
        logits = base_projector.head(hidden, embedding)
        factors = self.adapters.weights.get(HEAD)
        return logits if factors is None else logits + self._delta(hidden, factors)

    def _delta(self, x: jax.Array, factors: Factors) -> jax.Array:
        x = x.astype(jnp.float32)
        if not self.adapters.stacked:
            return ((x @ factors.a) * self.adapters.scale) @ factors.b
        low = jnp.einsum("btd,bdr->btr", x, factors.a[self.rows])
        return jnp.einsum("btr,brf->btf", low * self.adapters.scale[self.rows, None, None], factors.b[self.rows])


def head_of_row(adapters: AdapterSet | None, row: jax.Array) -> tuple[Factors, jax.Array] | None:
    """The head's factors, a (D, R) and b (R, V), and scale () of one row's adapter; None where the head has none."""
    if adapters is None or HEAD not in adapters.weights:
        return None
    factors = adapters.weights[HEAD]
    if not adapters.stacked:
        return factors, adapters.scale
    return Factors(factors.a[row], factors.b[row]), adapters.scale[row]


def combine(adapters: Sequence[Adapter | None], size: int) -> AdapterSet | None:
    """The adapter set of a batch: None for the base alone, an adapter as it is, else a stack of ``size`` entries.

    None among ``adapters`` is the base: an entry of zeros. Ranks are padded with zeros to the largest, which
    changes no product.
    """
    present = [adapter for adapter in adapters if adapter is not None]
    if not present:
        return None
    if len(adapters) == 1:
        return AdapterSet(present[0].weights, np.float32(present[0].scale), stacked=False)
    stack = _empty_stack(present, size)
    scale = [0.0 if adapter is None else adapter.scale for adapter in adapters]
    for entry, adapter in enumerate(adapters):
        if adapter is not None:
            own = {name: stack[name] for name in adapter.weights}
            stack |= _write_entry(own, adapter.weights, entry)
    return AdapterSet(stack, np.array(scale + [0.0] * (size - len(scale)), np.float32), stacked=True)


def entry_gradient(gradient: Weights, adapter: Adapter, entry: int, stacked: bool) -> Weights:
    """One adapter's part, at its own rank, of the gradient of an adapter set's weights."""
    own = {name: gradient[name] for name in adapter.weights}
    return _read_entry(own, entry, adapter.lora.rank) if stacked else own


def _empty_stack(adapters: Sequence[Adapter], size: int) -> dict[str, Factors]:
    rank = max(adapter.lora.rank for adapter in adapters)
    shapes = {}
    for adapter in adapters:
        for name, (a, b) in adapter.weights.items():
            shapes[name] = ((*a.shape[:-2], size, a.shape[-2], rank), (*b.shape[:-2], size, rank, b.shape[-1]))
    return _zeros(tuple(shapes.items()))


@partial(jax.jit, static_argnums=0)
def _zeros(shapes: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]) -> dict[str, Factors]:
    return {name: Factors(jnp.zeros(a, jnp.float32), jnp.zeros(b, jnp.float32)) for name, (a, b) in shapes}


@partial(jax.jit, donate_argnums=0)
def _write_entry(stack: Weights, weights: Weights, entry: jax.Array) -> Weights:
    def write(array: jax.Array, values: jax.Array) -> jax.Array:
        axis = array.ndim - 3  # the entry axis stands before (in, rank) or (rank, out)
        values = jnp.expand_dims(values, axis)
        return lax.dynamic_update_slice(array, values, [entry if i == axis else 0 for i in range(array.ndim)])

    return jax.tree.map(write, stack, weights)


@partial(jax.jit, static_argnums=2)
def _read_entry(gradient: Weights, entry: jax.Array, rank: int) -> Weights:
    def read(factors: Factors) -> Factors:
        a = lax.dynamic_index_in_dim(factors.a, entry, factors.a.ndim - 3, keepdims=False)
        b = lax.dynamic_index_in_dim(factors.b, entry, factors.b.ndim - 3, keepdims=False)
        return Factors(a[..., :rank], b[..., :rank, :])

    return {name: read(factors) for name, factors in gradient.items()}
