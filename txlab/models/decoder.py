"""One decoder for the Llama/Qwen family: pre-norm blocks, rotary grouped-query attention, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from txlab.models.attention import Attend, Cache, apply_rope, rope_angles
from txlab.models.config import ModelConfig, projection_shapes


def product(x: Array, kernel: Array) -> Array:
    """(..., in), (out, in) -> (..., out)."""
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (1,)), ((), ())))


Project = Callable[[str, Array, Array], Array]
"""``project(name, x, kernel) -> y``: (..., in), (out, in) -> (..., out) for one projection of a layer."""


class Projector(Protocol):
    """The seam by which adapters enter: computes every matrix product of the decoder."""

    def layer(self, index: int) -> Project:
        """What computes the products of one layer."""

    def head(self, hidden: Array, embedding: Array) -> Array:
        """(..., D), (V, D) -> (..., V)."""


class BaseProjector:
    """The base model alone."""

    def layer(self, index: int) -> Project:
        return lambda name, x, kernel: product(x, kernel)

    def head(self, hidden: Array, embedding: Array) -> Array:
        return product(hidden, embedding)


base_projector = BaseProjector()


class Decoder(nnx.Module):
    """Token ids in, hidden states out. Each layer has arrays of its own, so that a product reads them where they lie.

    ``parameters`` maps the names of ``parameter_shapes`` to an array, or to one for each layer.
    """

    def __init__(self, config: ModelConfig, parameters: Mapping[str, Array | Sequence[Array]]):
        self.config = config
        self.embedding = nnx.Param(parameters["embedding"])  # (V, D)
        self.unembedding = None if config.tie_word_embeddings else nnx.Param(parameters["unembedding"])  # (V, D)
        self.norm = nnx.Param(parameters["norm"])  # (D,)
        of_layers = {n.removeprefix("layers."): arrays for n, arrays in parameters.items() if n.startswith("layers.")}
        self.layers = nnx.data(
            [{name: nnx.Param(arrays[i]) for name, arrays in of_layers.items()} for i in range(config.num_layers)]
        )

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        attend: Attend,
        cache: Cache = None,
        project: Projector = base_projector,
    ) -> tuple[Array, Cache]:
        """(B, T) int32 ids and positions -> (B, T, D) states after the final norm, and the cache it left."""
        rope = rope_angles(self.config, positions)
        x = self.embedding[...][tokens]  # (B, T, D)
        for index, weights in enumerate(self.weights):

            def attend_here(q: Array, k: Array, v: Array, index: int = index) -> Array:
                nonlocal cache
                out, cache = attend(index, q, k, v, cache)
                return out

            x = block(self.config, weights, x, rope, attend_here, project.layer(index))
        return rms_norm(x, self.norm[...], self.config.rms_norm_eps), cache

    @property
    def weights(self) -> list[Mapping[str, Array]]:
        """The arrays of each layer, by name."""
        return [{name: param[...] for name, param in layer.items()} for layer in self.layers]

    @property
    def head(self) -> Array:
        """(V, D): row v scores token v."""
        return self.embedding[...] if self.unembedding is None else self.unembedding[...]

    def unembed(self, hidden: Array, project: Projector = base_projector) -> Array:
        """(..., D) -> (..., V) float32 logits."""
        return project.head(hidden, self.head).astype(jnp.float32)


def block(
    config: ModelConfig,
    weights: Mapping[str, Array],
    x: Array,
    rope: tuple[Array, Array],
    attend: Callable[[Array, Array, Array], Array],
    project: Project,
) -> Array:
    """One layer: x (B, T, D) -> (B, T, D).

    ``attend`` takes q (B, T, Hq, hd), k and v (B, T, Hkv, hd), rotated by ``rope``, and returns the shape of q.
    """

    def linear(name: str, x: Array) -> Array:
        y = project(name, x, weights[name])
        bias = weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(name: str, x: Array) -> Array:
        return rms_norm(x, weights[name], config.rms_norm_eps)

    h, heads = norm("attention_norm", x), (*x.shape[:2], -1, config.head_dim)
    q, k, v = (linear(name, h).reshape(heads) for name in ("q_proj", "k_proj", "v_proj"))  # (B, T, H, hd)
    if config.qk_norm:
        q, k = norm("q_norm", q), norm("k_norm", k)
    out = attend(apply_rope(q, *rope), apply_rope(k, *rope), v)
    x = x + linear("o_proj", out.reshape(*x.shape[:2], -1))
    h = norm("mlp_norm", x)
    return x + linear("down_proj", jax.nn.silu(linear("gate_proj", h)) * linear("up_proj", h))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """RMSNorm: x / rms(x) * weight over the last axis, in float32, back in the dtype of ``x``."""
    return _normed(x.astype(jnp.float32), eps).astype(x.dtype) * weight


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normed(x: Array, eps: float) -> Array:
    return x * _inverse_rms(x, eps)


def _normed_forward(x: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
    scale = _inverse_rms(x, eps)
    return x * scale, (x, scale)


def _normed_backward(eps: float, known: tuple[Array, Array], dy: Array) -> tuple[Array]:
    """With y = x * scale, d(scale) / dx = -scale^2 * y / D: dx = scale * (dy - y * mean(dy * y))."""
    x, scale = known
    y = x * scale
    average = jnp.full((x.shape[-1], 1), 1 / x.shape[-1])  # as a product, since XLA:CPU sums this on one core
    mean = jnp.matmul(dy * y, average, precision=lax.Precision.HIGHEST)
    return (scale * (dy - y * mean),)


_normed.defvjp(_normed_forward, _normed_backward)


def _inverse_rms(x: Array, eps: float) -> Array:
    return lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that a Decoder holds; of ``layers.*`` there are L, their kernels (out, in).

    That is how files have them, and what products of few rows, as decoding has them, read fastest on CPU.
    """
    hidden, projections = config.hidden_size, projection_shapes(config)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, hidden), "norm": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["unembedding"] = (config.vocab_size, hidden)
    shapes |= {f"layers.{name}": shape[::-1] for name, shape in projections.items() if name != "lm_head"}
    biased = ("q_proj", "k_proj", "v_proj") * config.qkv_bias + ("o_proj",) * config.o_bias
    shapes |= {f"layers.{name}.bias": projections[name][1:] for name in biased}
    shapes |= {f"layers.{name}": (hidden,) for name in ("attention_norm", "mlp_norm")}
    if config.qk_norm:
        shapes |= {f"layers.{name}": (config.head_dim,) for name in ("q_norm", "k_norm")}
    return shapes
