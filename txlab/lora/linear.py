"""The multi-adapter linear layer: the one seam where adapters enter the base model and kernels are swapped.

Training applies one adapter at a time, at its own rank, to the window of tokens that are its own; the derivative is
written out and asks for no gradient of the base. Sampling has rows of several adapters in a batch: they lie side by
side along the rank, so that one product reads each adapter once, and a row keeps the columns that are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from txlab.lora.adapter import Adapter, Factors, Weights
from txlab.models.config import UNEMBED
from txlab.models.decoder import Project, base_projector, product

(HEAD,) = UNEMBED
MIN_COLUMNS = 8


class AdapterSet(NamedTuple):
    """The adapters of one device batch, layer by layer, scales included: a (in, R) and b (R, out).

    R is the sum of their ranks, rounded up. ``owner`` (R,) int32 says which entry a column belongs to, -1: none; it is
    None where one adapter is alone and all columns are for all rows.
    """

    layers: tuple[Weights, ...]
    head: Factors | None
    owner: np.ndarray | None

    def columns(self, entries: Sequence[int]) -> np.ndarray | None:
        """Of rows with these entries, (B, R) float32: 1 where a column is the row's own, 0 elsewhere; None: all are."""
        return None if self.owner is None else (self.owner == np.array(entries)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class LoraProjector:
    """Every linear layer of the base plus the low-rank product of each row's adapter, for forward passes.

    ``layers`` and ``head_factors`` are those of an AdapterSet, or some of them, ``columns`` its columns of the rows.
    """

    layers: Sequence[Weights]
    head_factors: Factors | None
    columns: Any

    def layer(self, index: int) -> Project:
        """X (B, T, in), kernel (out, in) -> (B, T, out)."""

        def project(name: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
            y = product(x, kernel)
            factors = self.layers[index].get(name)
            return y if factors is None else y + self._low_rank(x, factors).astype(y.dtype)

        return project

    def head(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        """Hidden (B, T, D), embedding (V, D) -> float32 logits (B, T, V)."""
        logits = base_projector.head(hidden, embedding).astype(jnp.float32)
        return logits if self.head_factors is None else logits + self._low_rank(hidden, self.head_factors)

    @jax.named_scope("adapter")
    def _low_rank(self, x: jax.Array, factors: Factors) -> jax.Array:
        low = x.astype(jnp.float32) @ factors.a  # (B, T, R)
        return (low if self.columns is None else low * self.columns[:, None]) @ factors.b


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


def combine(adapters: Sequence[Adapter | None], depth: int, placement: Sharding) -> AdapterSet | None:
    """The adapter set of a batch, of a base with ``depth`` layers; None for the base alone.

    Among others the base has no columns. Columns of nobody are zeros. Laid out on the host: as fast there as by a
    program, and none is compiled for each mixture of ranks. Where there are several, what is not finite becomes 0,
    since 0 times it would be NaN in the rows of the others.
    """
    present = [(entry, adapter) for entry, adapter in enumerate(adapters) if adapter is not None]
    if not present:
        return None
    alone = len(adapters) == 1
    ranks = [adapter.lora.rank for _, adapter in present]
    size = max(MIN_COLUMNS, 1 << (sum(ranks) - 1).bit_length())
    owner = np.full(size, -1, np.int32)
    owner[: sum(ranks)] = np.repeat([entry for entry, _ in present], ranks)
    names = dict.fromkeys(name for _, adapter in present for name in adapter.weights)
    layout = {name: _side_by_side(name, [adapter for _, adapter in present], size) for name in names}
    head = layout.pop(HEAD, None)
    layers = tuple({name: Factors(a[layer], b[layer]) for name, (a, b) in layout.items()} for layer in range(depth))
    layers, head = jax.device_put((layers, head), placement)
    return AdapterSet(layers, head, None if alone else owner)


def _side_by_side(name: str, adapters: Sequence[Adapter], size: int) -> Factors:
    """Of one projection, a (…, in, size) and b (…, size, out): the factors of each that has some, in its columns."""
    like = next(adapter.weights[name] for adapter in adapters if name in adapter.weights)
    a = np.zeros((*like.a.shape[:-1], size), np.float32)
    b = np.zeros((*like.b.shape[:-2], size, like.b.shape[-1]), np.float32)
    start = 0
    for adapter in adapters:
        here = slice(start, start := start + adapter.lora.rank)
        if name in adapter.weights:
            a[..., here] = np.asarray(adapter.weights[name].a)
            b[..., here, :] = np.asarray(adapter.weights[name].b) * np.float32(adapter.scale)
    if len(adapters) > 1:
        for array in (a, b):
            np.nan_to_num(array, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return Factors(a, b)
