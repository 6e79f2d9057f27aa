"""The jitted programs of training. Each works on a window of a batch, or on a slice of its positions.

Layers run one by one, dispatched from the host: a layer's program is compiled once for all layers, reads the base's
weights where they lie, and the host decides what is kept for the backward pass. That gets the products' results of
the forward pass as they were, and differentiates only what lies between them.

Buffers of a batch have N positions, of which a window is W: states are written in place (donated). Adapters keep
their layer axis; ``layer`` () int32 says which slice is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from txlab.engine.losses import Terms, apply, fused
from txlab.lora.adapter import HEAD, Factors, Weights
from txlab.lora.linear import adapted, adapted_gradient
from txlab.models.attention import rope_angles
from txlab.models.config import ModelConfig
from txlab.models.decoder import Project, base_projector, block, product, rms_norm
from txlab.models.segments import attention, attention_gradient

_UNUSED = "down_proj"  # its result is added to the states and no derivative asks for it


class Lora(NamedTuple):
    """One adapter, as programs take it."""

    weights: Weights
    scale: Any  # () float32


class HeadLora(NamedTuple):
    """The head's part of an adapter."""

    factors: Factors  # (D, r) and (r, V)
    scale: Any


class Place(NamedTuple):
    """Where the states of a batch stand: cosines and sines (N, hd/2), segment ids (N,)."""

    rope: tuple[jax.Array, jax.Array]
    segment_ids: jax.Array


class At(NamedTuple):
    """A window, as programs take it."""

    start: Any  # () int32
    reach: Any  # (blocks,) int32, see models.segments.attention


class Kept(NamedTuple):
    """Of one layer and window, what the backward pass needs: the states before it, and unless they are recomputed
    the results of its products (1, W, out) by name and of its attention.
    """

    x: jax.Array  # (1, W, D)
    products: Mapping[str, jax.Array] | None
    attended: tuple[jax.Array, jax.Array] | None


class SliceInputs(NamedTuple):
    """Positions of a batch as the head takes them; shapes as in HeadSlice."""

    index: Any
    targets: Any
    inputs: Mapping[str, Any]


class SliceOutput(NamedTuple):
    """Of each position of a slice, 0 in padding; logprobs float32 in the shape of the targets."""

    logprobs: jax.Array
    terms: Terms


@partial(jax.jit, static_argnums=0)
def embed(config: ModelConfig, embedding: jax.Array, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array):
    """States (N, D) of tokens (N,), zeros of their shape for the gradient, and their Place."""
    cos, sin = rope_angles(config, positions[None])
    hidden = embedding[tokens]
    return hidden, jnp.zeros_like(hidden), Place((cos[0], sin[0]), segment_ids)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=6)
def layer_forward(config: ModelConfig, width: int, weights, lora: Lora, layer, place: Place, hidden, at: At):
    """One layer over a window: the states (N, D) with it, and what was Kept."""
    x, where = _window(width, at, hidden, place)
    y, kept = _forward(config, weights, _of_layer(lora, layer), x, where)
    return lax.dynamic_update_slice_in_dim(hidden, y[0], at.start, 0), kept


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=7)
def layer_backward(
    config: ModelConfig, width: int, weights, lora: Lora, layer, kept: Kept, place: Place, dhidden, at: At
):
    """The gradient by the states before the layer, (N, D) in place of that after it, and that by its factors."""
    dy, where = _window(width, at, dhidden, place)
    own = _of_layer(lora, layer)
    if kept.products is None:
        _, kept = _forward(config, weights, own, kept.x, where)
    dx, dfactors = _backward(config, weights, own, kept, where, dy)
    return lax.dynamic_update_slice_in_dim(dhidden, dx[0], at.start, 0), dfactors


@partial(jax.jit, static_argnums=0)
def head_forward(
    config: ModelConfig, norm, table, own: HeadLora | None, kind, hidden, part: SliceInputs
) -> SliceOutput:
    """Logprobs and loss of a slice of the states (N, D), by the head's ``table`` (V, D) and adapter."""
    score = _scorer(config, norm, table, kind, part, len(hidden))
    return score(_rows(hidden, part.index), own)[1]


@partial(jax.jit, static_argnums=0, donate_argnums=(6, 7))
def head_backward(
    config: ModelConfig, norm, table, own: HeadLora | None, kind, hidden, dhidden, dfactors, part: SliceInputs
):
    """The same, and the gradient: of the slice's rows of ``dhidden`` (N, D), and of the head's factors, added up."""
    score = _scorer(config, norm, table, kind, part, len(hidden))
    x = _rows(hidden, part.index)
    if own is None:
        dx, output = jax.grad(lambda x: score(x, None), has_aux=True)(x)
    else:
        total = lambda x, factors: score(x, HeadLora(factors, own.scale))  # noqa: E731
        (dx, more), output = jax.grad(total, (0, 1), has_aux=True)(x, own.factors)
        dfactors = jax.tree.map(jnp.add, dfactors, more)
    return output, dhidden.at[part.index].set(dx, mode="drop"), dfactors


def head_lora(lora: Lora) -> HeadLora | None:
    """The head's part; None where the head is not adapted."""
    return HeadLora(lora.weights[HEAD], lora.scale) if HEAD in lora.weights else None


def head_logits(table: jax.Array, own: HeadLora | None, hidden: jax.Array) -> jax.Array:
    """Float32 logits (S, V) of states (S, D)."""
    logits = base_projector.head(hidden, table).astype(jnp.float32)
    if own is None:
        return logits
    (a, b), scale = own
    return logits + ((hidden.astype(jnp.float32) @ a) * scale) @ b


def _scorer(config: ModelConfig, norm, table, kind, part: SliceInputs, size: int):
    """Of rows (S, D) and the head's adapter: the summed loss, and the SliceOutput."""
    real = part.index < size

    @jax.named_scope("loss")
    def score(x: jax.Array, own: HeadLora | None) -> tuple[jax.Array, SliceOutput]:
        logits = head_logits(table, own, rms_norm(x, norm, config.rms_norm_eps))  # (S, V)
        targets = part.targets.reshape(len(x), -1)
        chosen = jnp.take_along_axis(logits, targets, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        logprobs = chosen.reshape(part.targets.shape)
        logprobs, terms = apply(partial(fused, kind), logprobs, part.inputs, real)
        return terms.loss.sum(), SliceOutput(logprobs, terms)

    return score


def _rows(hidden: jax.Array, index: jax.Array) -> jax.Array:
    return hidden.at[index].get(mode="fill", fill_value=0)


class _Where(NamedTuple):
    """A window's part of a Place: (1, W, hd/2) twice, (1, W), and its reach."""

    rope: tuple[jax.Array, jax.Array]
    segment_ids: jax.Array
    reach: jax.Array


def _window(width: int, at: At, states: jax.Array, place: Place) -> tuple[jax.Array, _Where]:
    """A window of states (1, W, D), and where it stands."""
    cut = lambda array: lax.dynamic_slice_in_dim(array, at.start, width)[None]  # noqa: E731
    return cut(states), _Where(jax.tree.map(cut, place.rope), cut(place.segment_ids), at.reach)


def _of_layer(lora: Lora, layer) -> Lora:
    """One layer's factors, of the projections that are adapted."""
    cut = lambda array: lax.dynamic_index_in_dim(array, layer, keepdims=False)  # noqa: E731
    return Lora({name: jax.tree.map(cut, lora.weights[name]) for name in lora.weights if name != HEAD}, lora.scale)


def _forward(config: ModelConfig, weights, own: Lora, x, where: _Where) -> tuple[jax.Array, Kept]:
    products: dict[str, jax.Array] = {}
    attended: list[jax.Array] = []

    def project(name: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        products[name] = _linear(x, kernel, own.weights.get(name), own.scale)
        return products[name]

    @jax.named_scope("attention")
    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        attended.extend(attention(q, k, v, where.segment_ids, where.reach))
        return attended[0]

    y = block(config, weights, x, where.rope, attend, project)
    products.pop(_UNUSED)
    return y, Kept(x, products, (attended[0], attended[1]))


def _backward(config: ModelConfig, weights, own: Lora, kept: Kept, where: _Where, dy):
    """Run the layer again with the results of its products given, and differentiate that."""
    assert kept.products is not None, "recomputed where it was not kept"
    assert kept.attended is not None, "recomputed where it was not kept"
    products, (out, sums) = kept.products, kept.attended

    def again(x: jax.Array, factors: Mapping[str, Factors]) -> jax.Array:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return _given_attention(q, k, v, where.segment_ids, where.reach, out, sums)

        return block(config, weights, x, where.rope, attend, _given_products(products, factors, own.scale))

    _, pull = jax.vjp(again, kept.x, own.weights)
    return pull(dy)


def _given_products(products: Mapping[str, jax.Array], factors: Mapping[str, Factors], scale) -> Project:
    def project(name: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = products[name] if name in products else jnp.zeros((*x.shape[:-1], kernel.shape[0]), x.dtype)
        return _given_linear(x, kernel, factors.get(name), scale, y)

    return project


def _linear(x: jax.Array, kernel: jax.Array, factors: Factors | None, scale) -> jax.Array:
    """(1, W, in) -> (1, W, out)."""
    return product(x, kernel) if factors is None else adapted(x[0], kernel, factors, scale)[None]


@jax.custom_vjp
def _given_linear(x, kernel, factors: Factors | None, scale, y) -> jax.Array:
    """``y``, known to be what ``_linear`` gives."""
    return y


def _given_linear_backward(known, dy):
    x, kernel, factors, scale = known
    if factors is None:
        return dy @ kernel, None, None, None, None
    dx, dfactors = adapted_gradient(x[0], kernel, factors, scale, dy[0])
    return dx[None], None, dfactors, None, None


_given_linear.defvjp(lambda *given: (given[-1], given[:-1]), _given_linear_backward)


@jax.custom_vjp
def _given_attention(q, k, v, segment_ids, reach, out, sums) -> jax.Array:
    """``out``, known to be what ``attention`` gives."""
    return out


@jax.named_scope("attention")
def _given_attention_backward(known, dout):
    q, k, v, segment_ids, reach, out, sums = known
    return *attention_gradient(q, k, v, segment_ids, reach, out, sums, dout), None, None, None, None


_given_attention.defvjp(lambda *given: (given[5], given), _given_attention_backward)
