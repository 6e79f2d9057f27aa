"""One decoder for the Llama/Qwen family: pre-norm blocks, rotary grouped-query attention, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from txlab.models.attention import Attend, Cache, apply_rope, rope_angles
from txlab.models.config import ModelConfig, projection_shapes


class Projector(Protocol):
    """The seam by which adapters enter: computes every matrix product of the decoder."""

    @property
    def layers(self) -> Any:
        """A pytree whose leaves have a leading axis L; each layer sees its slice as ``layer``."""

    def __call__(self, name: str, x: Array, kernel: Array, layer: Any) -> Array:
        """(B, T, in), (in, out) -> (B, T, out) for the projection ``name`` of one layer."""

    def head(self, hidden: Array, embedding: Array) -> Array:
        """(..., D), (V, D) -> (..., V)."""


class BaseProjector:
    """The base model alone."""

    layers = None

    def __call__(self, name: str, x: Array, kernel: Array, layer: Any) -> Array:
        return x @ kernel

    def head(self, hidden: Array, embedding: Array) -> Array:
        return lax.dot_general(hidden, embedding, (((hidden.ndim - 1,), (1,)), ((), ())))


base_projector = BaseProjector()


class Decoder(nnx.Module):
    """Token ids in, hidden states out. Layer parameters are stacked: each has a leading axis L.

    ``parameters`` maps the names and shapes of ``parameter_shapes`` to arrays.
    """

    def __init__(self, config: ModelConfig, parameters: Mapping[str, Array]):
        self.config = config
        self.embedding = nnx.Param(parameters["embedding"])  # (V, D)
        self.unembedding = None if config.tie_word_embeddings else nnx.Param(parameters["unembedding"])  # (V, D)
        self.norm = nnx.Param(parameters["norm"])  # (D,)
        stacked = {name.removeprefix("layers."): a for name, a in parameters.items() if name.startswith("layers.")}
        self.layers = nnx.data({name: nnx.Param(array) for name, array in stacked.items()})

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        attend: Attend,
        cache: Cache = None,
        project: Projector = base_projector,
        remat: bool = False,
    ) -> tuple[Array, Cache]:
        """(B, T) int32 ids and positions -> (B, T, D) states after the final norm, and the cache as attention left it.

        ``remat``: a backward pass recomputes each layer instead of keeping its activations.
        """
        config = self.config
        cos, sin = rope_angles(config, positions)  # (B, T, hd/2)
        x = self.embedding[...][tokens]  # (B, T, D)

        def layer(carry, scanned):
            x, cache = carry
            index, weights, adapters = scanned
            block = _Block(config, weights, lambda name, x, kernel: project(name, x, kernel, adapters))
            out, cache = block.attention(index, x, cos, sin, attend, cache)
            x = x + out
            return (x + block.mlp(x), cache), None

        weights = {name: param[...] for name, param in self.layers.items()}
        indices = jnp.arange(config.num_layers, dtype=jnp.int32)
        body = jax.checkpoint(layer) if remat else layer
        (x, cache), _ = lax.scan(body, (x, cache), (indices, weights, project.layers))
        return rms_norm(x, self.norm[...], config.rms_norm_eps), cache

    @property
    def head(self) -> Array:
        """(V, D): row v scores token v."""
        return self.embedding[...] if self.unembedding is None else self.unembedding[...]

    def unembed(self, hidden: Array, project: Projector = base_projector) -> Array:
        """(..., D) -> (..., V) float32 logits."""
        return project.head(hidden, self.head).astype(jnp.float32)


class _Block:
    """One layer: its slice of the weights, and the projector bound to its slice of the adapters."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array], project: Callable[..., Array]):
        self.config = config
        self.weights = weights
        self._project = project

    def project(self, name: str, x: Array) -> Array:
        y = self._project(name, x, self.weights[name])
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name: str, x: Array) -> Array:
        return rms_norm(x, self.weights[name], self.config.rms_norm_eps)

    def attention(
        self, index: Array, x: Array, cos: Array, sin: Array, attend: Attend, cache: Cache
    ) -> tuple[Array, Cache]:
        x = self.norm("attention_norm", x)
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q, k, v = (self.project(name, x).reshape(heads) for name in ("q_proj", "k_proj", "v_proj"))  # (B, T, H, hd)
        if self.config.qk_norm:
            q, k = self.norm("q_norm", q), self.norm("k_norm", k)
        out, cache = attend(index, apply_rope(q, cos, sin), apply_rope(k, cos, sin), v, cache)
        return self.project("o_proj", out.reshape(*x.shape[:2], -1)), cache

    def mlp(self, x: Array) -> Array:
        x = self.norm("mlp_norm", x)
        return self.project("down_proj", jax.nn.silu(self.project("gate_proj", x)) * self.project("up_proj", x))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """RMSNorm: x / rms(x) * weight over the last axis, in float32, back in the dtype of ``x``."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that a Decoder holds; kernels are (L, in, out)."""
    layers, hidden = config.num_layers, config.hidden_size
    projections = projection_shapes(config)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, hidden), "norm": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["unembedding"] = (config.vocab_size, hidden)
    for name, (size_in, size_out) in projections.items():
        if name != "lm_head":
            shapes[f"layers.{name}"] = (layers, size_in, size_out)
    biased = ("q_proj", "k_proj", "v_proj") * config.qkv_bias + ("o_proj",) * config.o_bias
    shapes |= {f"layers.{name}.bias": (layers, projections[name][1]) for name in biased}
    shapes |= {f"layers.{name}": (layers, hidden) for name in ("attention_norm", "mlp_norm")}
    if config.qk_norm:
        shapes |= {f"layers.{name}": (layers, config.head_dim) for name in ("q_norm", "k_norm")}
    return shapes
