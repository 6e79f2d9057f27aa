"""The jitted programs of training: forward, forward_backward, optim_step.

The vocabulary-sized logits of a batch are never all alive: the head and its log-softmax run over one slice of
positions at a time, and the backward pass recomputes each slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from txlab.engine.losses import Loss, apply
from txlab.engine.packing import TrainBatch
from txlab.engine.requests import AdamParams, OptimStepResult, RequestError
from txlab.lora.adapter import Adapter, Weights, zero_moments
from txlab.lora.linear import AdapterSet, LoraProjector, head_of_row
from txlab.models.attention import segment_attention
from txlab.models.decoder import Decoder, base_projector

HEAD_TOKENS = 128  # positions whose logits are alive together
LOSSES_COMPILED = 64  # losses whose programs are kept; users replace theirs again and again


class Arrays(NamedTuple):
    """The device's part of a TrainBatch, in NumPy or traced; shapes as there."""

    tokens: Any
    positions: Any
    segment_ids: Any
    targets: Any
    inputs: Mapping[str, Any]
    adapters: Any


class PassOutput(NamedTuple):
    """Of one batch, (B, T) float32 each, 0 in padding."""

    logprobs: Any  # (B, T), or (B, T, K) as the targets
    loss: Any  # elementwise; of K targets together
    metrics: Mapping[str, Any]  # elementwise, as Terms has them
    counts: Any  # what means divide by, elementwise, or None


class Trainer:
    """Runs passes and optimizer steps over one base model."""

    def __init__(self, decoder: Decoder, remat_tokens: int):
        self._graph, self._state = nnx.split(decoder)
        self._remat_tokens = remat_tokens

    def forward(self, adapters: AdapterSet | None, batch: TrainBatch, loss: Loss) -> PassOutput:
        """Logprobs, elementwise loss and metrics."""
        return jax.device_get(_programs(loss).forward(self._graph, self._state, adapters, _arrays(batch)))

    def forward_backward(self, adapters: AdapterSet, batch: TrainBatch, loss: Loss) -> tuple[PassOutput, Weights]:
        """The same, and the gradient of the summed loss by ``adapters.weights``, left on the device."""
        remat = batch.tokens.size > self._remat_tokens
        run = _programs(loss).forward_backward
        output, gradient = run(self._graph, remat, self._state, adapters, _arrays(batch))
        return jax.device_get(output), gradient


def accumulate(total: Weights | None, gradient: Weights) -> Weights:
    """``total + gradient``; ``total`` is donated."""
    return gradient if total is None else _add(total, gradient)


def optim_step(adapter: Adapter, params: AdamParams) -> OptimStepResult:
    """Apply the accumulated gradient (zero where there is none) with AdamW, and clear it.

    RequestError where the gradient is not finite: it is dropped, weights and moments stay as they were.
    """
    moments = adapter.moments if adapter.moments is not None else zero_moments(adapter.weights)
    gradient = adapter.gradient if adapter.gradient is not None else zero_moments(adapter.weights).mu
    adapter.gradient = None
    values = {name: np.float32(getattr(params, name)) for name in AdamParams.__dataclass_fields__}
    adapter.weights, adapter.moments, norm = _optim_step(adapter.weights, gradient, moments, values)
    norm = float(norm)
    if not np.isfinite(norm):
        raise RequestError("the accumulated gradient is not finite; it was dropped and the adapter is unchanged")
    return OptimStepResult({"grad_norm": norm, "learning_rate": params.learning_rate, "step": float(adapter.step)})


def _arrays(batch: TrainBatch) -> Arrays:
    return Arrays(batch.tokens, batch.positions, batch.segment_ids, batch.targets, batch.inputs, batch.adapters)


class Programs(NamedTuple):
    """The jitted programs of one loss; arguments as in ``_forward`` and ``_forward_backward``, the loss left out."""

    forward: Callable[..., PassOutput]
    forward_backward: Callable[..., tuple[PassOutput, Weights]]


@lru_cache(maxsize=LOSSES_COMPILED)
def _programs(loss: Loss) -> Programs:
    """A loss that falls out takes its compiled programs along; as a static argument jit would hold on to it."""
    return Programs(
        jax.jit(partial(_forward, loss), static_argnums=0),
        jax.jit(partial(_forward_backward, loss), static_argnums=(0, 1)),
    )


def _forward(loss: Loss, graph, state, adapters: AdapterSet | None, arrays: Arrays) -> PassOutput:
    return _pass(nnx.merge(graph, state), adapters, arrays, loss)


def _forward_backward(loss: Loss, graph, remat: bool, state, adapters: AdapterSet, arrays: Arrays):
    decoder = nnx.merge(graph, state)

    def total(weights: Weights):
        output = _pass(decoder, AdapterSet(weights, adapters.scale, adapters.stacked), arrays, loss, remat)
        return output.loss.sum(), output

    gradient, output = jax.grad(total, has_aux=True)(adapters.weights)
    return output, gradient


def _pass(decoder: Decoder, adapters: AdapterSet | None, arrays: Arrays, loss: Loss, remat: bool = False) -> PassOutput:
    project = base_projector if adapters is None else LoraProjector(adapters, arrays.adapters)
    attend = segment_attention(arrays.segment_ids)
    hidden, _ = decoder(arrays.tokens, arrays.positions, attend, project=project, remat=remat)  # (B, T, D)
    logprobs = target_logprobs(decoder.head, adapters, arrays.adapters, hidden, arrays.targets)
    logprobs, terms = apply(loss, logprobs, arrays.inputs, arrays.segment_ids > 0)
    return PassOutput(logprobs, *terms)


def target_logprobs(
    head: jax.Array, adapters: AdapterSet | None, rows: jax.Array, hidden: jax.Array, targets: jax.Array
) -> jax.Array:
    """Log-probabilities float32 of ``targets`` (B, T) or (B, T, K), from states (B, T, D) and the head (V, D).

    One slice of HEAD_TOKENS positions at a time: of all rows together where they share an adapter, else of a row.
    """
    batch, width, *many = targets.shape
    shared = adapters is None or not adapters.stacked
    size = min(HEAD_TOKENS, batch * width if shared else width)
    slices = batch * width // size

    @jax.checkpoint
    def slice_logprobs(hidden: jax.Array, targets: jax.Array, row: jax.Array) -> jax.Array:
        logits = head_logits(head, adapters, hidden, row)  # (S, V)
        chosen = jnp.take_along_axis(logits, targets, axis=-1)  # (S, K)
        return chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    of_slice = jnp.repeat(rows, slices // batch) if not shared else jnp.zeros(slices, jnp.int32)
    parts = (hidden.reshape(slices, size, -1), targets.reshape(slices, size, -1), of_slice)
    _, logprobs = lax.scan(lambda _, part: (None, slice_logprobs(*part)), None, parts)
    return logprobs.reshape(batch, width, *many)


def head_logits(head: jax.Array, adapters: AdapterSet | None, hidden: jax.Array, row: jax.Array) -> jax.Array:
    """Float32 logits (S, V) of states (S, D) that share the adapter ``row``."""
    logits = base_projector.head(hidden, head).astype(jnp.float32)
    own = head_of_row(adapters, row)
    if own is None:
        return logits
    (a, b), scale = own
    return logits + ((hidden.astype(jnp.float32) @ a) * scale) @ b


@partial(jax.jit, donate_argnums=0)
def _add(total: Weights, gradient: Weights) -> Weights:
    return jax.tree.map(jnp.add, total, gradient)


@partial(jax.jit, donate_argnums=(1, 2))
def _optim_step(weights: Weights, gradient: Weights, moments: optax.ScaleByAdamState, adam: Mapping[str, jax.Array]):
    """AdamW as torch has it; weights are not donated, since a snapshot may share them."""
    norm = optax.tree.norm(gradient)
    clip = adam["grad_clip_norm"]
    factor = jnp.where(clip > 0, jnp.minimum(1.0, clip / (norm + 1e-6)), 1.0)
    gradient = jax.tree.map(lambda g: g * factor, gradient)
    rule = optax.chain(
        optax.scale_by_adam(adam["beta1"], adam["beta2"], adam["eps"]),
        optax.add_decayed_weights(adam["weight_decay"]),
        optax.scale_by_learning_rate(adam["learning_rate"]),
    )
    updates, (stepped, *_) = rule.update(gradient, (moments, optax.EmptyState(), optax.EmptyState()), weights)
    proposed = (optax.apply_updates(weights, updates), stepped)
    kept = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(norm), new, old), proposed, (weights, moments))
    return *kept, norm
