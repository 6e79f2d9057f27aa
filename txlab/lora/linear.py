"""The multi-adapter linear layer: the one seam where adapters enter the base model and kernels are swapped.

Training applies one adapter at a time, at its own rank, to the window of tokens that are its own; the derivative is
written out and asks for no gradient of the base. Sampling has rows of several adapters in a batch: they are stacked,
ranks padded to the largest, and each row gathers its own; one adapter alone is applied to all rows without a gather.
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
from txlab.models.decoder import Project, base_projector, product

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
    """Every linear layer of the base plus the low-rank product of each row's adapter, for forward passes.

    ``rows`` (B,) int32 says which of the stacked adapters a row uses; one adapter alone needs none.
    """

    adapters: AdapterSet
    rows: jax.Array | None

    def layer(self, index: int) -> Project:
        """X (B, T, in), kernel (out, in) -> (B, T, out)."""
        scale, stacked = self.adapters.scale, self.adapters.stacked

        def project(name: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
            if name not in self.adapters.weights:
                return product(x, kernel)
            a, b = (array[index] for array in self.adapters.weights[name])
            if not stacked:
                return adapted(x.reshape(-1, x.shape[-1]), kernel, Factors(a, b), scale).reshape(*x.shape[:-1], -1)
            low = jnp.einsum("bti,bir->btr", x.astype(jnp.float32), a[self.rows]) * scale[self.rows, None, None]
            return product(x, kernel) + jnp.einsum("btr,bro->bto", low, b[self.rows]).astype(x.dtype)

        return project

    def head(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        """Hidden (B, T, D), with one adapter (..., D), embedding (V, D) -> float32 logits (..., V)."""
        logits = base_projector.head(hidden, embedding)
        if HEAD not in self.adapters.weights:
            return logits
        (a, b), scale = self.adapters.weights[HEAD], self.adapters.scale
        hidden = hidden.astype(jnp.float32)
        if not self.adapters.stacked:
            return logits + ((hidden @ a) * scale) @ b
        low = jnp.einsum("btd,bdr->btr", hidden, a[self.rows]) * scale[self.rows, None, None]
        return logits + jnp.einsum("btr,brv->btv", low, b[self.rows])


def adapted(x: jax.Array, kernel: jax.Array, factors: Factors, scale: jax.Array) -> jax.Array:
    """X (N, in) through kernel (out, in) and one adapter, a (in, r) and b (r, out); its products are float32."""
    y = product(x, kernel)
    with jax.named_scope("adapter"):
        low = (x.astype(jnp.float32) @ factors.a) * scale  # (N, r)
        return y + (low @ factors.b).astype(x.dtype)


def adapted_gradient(
    x: jax.Array, kernel: jax.Array, factors: Factors, scale: jax.Array, dy: jax.Array
) -> tuple[jax.Array, Factors]:
    """The gradients of ``adapted`` by x and by the factors, from that by its result; the base gets none."""
    dx = dy @ kernel
    with jax.named_scope("adapter"):
        flat, wide = x.astype(jnp.float32), dy.astype(jnp.float32)
        low = (flat @ factors.a) * scale
        dlow = (wide @ factors.b.T) * scale
        da = (dlow.T @ flat).T  # this order is the faster one
        return dx + (dlow @ factors.a.T).astype(x.dtype), Factors(da, low.T @ wide)


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
