"""The multi-adapter linear layer: the one seam where adapters enter the base model and kernels are swapped.

Training applies one adapter at a time, at its own rank, to the window of tokens that are its own; the derivative is
written out and asks for no gradient of the base. Sampling has rows of several adapters in a batch: see ``adapter_set``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from txlab.lora.adapter import Factors, Weights
from txlab.lora.adapter_set import Columns, Routes, Slots
from txlab.models.decoder import Project, base_projector, product


@dataclass(frozen=True)
class LoraProjector:
    """Every linear layer of the base plus the low-rank product of each row's adapter, for forward passes.

    ``layers`` and ``head_factors`` are those of an AdapterSet, or some of them, ``routes`` its routes of the rows.
    """

    layers: Sequence[Weights]
    head_factors: Factors | None
    routes: Routes

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
        """(B, T, in) -> (B, T, out)."""
        (a, b), x = factors, x.astype(jnp.float32)
        match self.routes:
            case None:
                return product(x, a) @ b
            case Columns(kept):
                return (product(x, a) * kept[:, None]) @ b
            case Slots(rows, places):
                own = x[rows].reshape(len(rows), -1, x.shape[-1])  # (G, n * T, in)
                low = jnp.einsum("gti,gri->gtr", own, a)
                out = jnp.einsum("gtr,gro->gto", low, b).reshape(-1, x.shape[1], b.shape[-1])  # (G * n, T, out)
                return out.at[places].get(mode="fill", fill_value=0)


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
