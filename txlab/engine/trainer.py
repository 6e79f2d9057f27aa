"""Runs training: batches forward, through the head, and back; gradients added up; the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from txlab.engine import programs
from txlab.engine.losses import Loss, Terms, apply
from txlab.engine.packing import HeadSlice, TrainBatch, Window
from txlab.engine.programs import At, Kept, Lora, Place, SliceInputs, SliceOutput
from txlab.engine.requests import AdamParams, OptimStepResult, RequestError
from txlab.lora.adapter import Adapter, Factors, Gradient, Weights, zero_gradient, zero_head, zero_moments
from txlab.models.config import ModelConfig
from txlab.models.decoder import Decoder

LOSSES_COMPILED = 64  # losses whose programs are kept; users replace theirs again and again


@dataclass(slots=True, eq=False)
class Activations:
    """A batch on the device, between its forward and its backward pass."""

    batch: TrainBatch
    adapters: Sequence[Lora]
    place: Place
    hidden: jax.Array  # (N, D) after the last layer
    dhidden: jax.Array  # (N, D), what the head has written of its gradient
    kept: list[list[Kept]]  # by layer, by window; empty without a backward pass
    dhead: dict[int, Factors | None] = field(default_factory=dict)  # by adapter, of the head's factors


class Trainer:
    """Passes over one base model, or its first ``depth`` layers.

    ``keep_tokens`` is the longest batch whose activations are kept, not recomputed.
    """

    def __init__(self, decoder: Decoder, keep_tokens: int, depth: int | None = None):
        self._config = decoder.config
        self._embedding, self._norm, self._head = decoder.embedding[...], decoder.norm[...], decoder.head
        self._layers = decoder.weights[:depth]
        self._keep_tokens = keep_tokens

    def forward(self, batch: TrainBatch, adapters: Sequence[Adapter], backward: bool) -> Activations:
        """Run a batch through the layers, each window with the adapter that it names."""
        loras = [Lora(adapter.weights, np.float32(adapter.scale)) for adapter in adapters]
        hidden, dhidden, place = programs.embed(
            self._config, self._embedding, batch.tokens, batch.positions, batch.segment_ids
        )
        recompute = len(batch.tokens) > self._keep_tokens
        kept: list[list[Kept]] = []
        for layer, weights in enumerate(self._layers):
            of_layer = []
            for window in batch.windows:
                hidden, one = programs.layer_forward(
                    self._config,
                    window.width,
                    weights,
                    loras[window.adapter],
                    np.int32(layer),
                    place,
                    hidden,
                    _at(window),
                )
                of_layer.append(Kept(one.x, None, None) if recompute else one)
            if backward:
                kept.append(of_layer)
        return Activations(batch, loras, place, hidden, dhidden, kept)

    def score(self, activations: Activations, part: HeadSlice) -> SliceOutput:
        """Logprobs and loss of a slice; where it is ``backward``, the activations keep the head's gradients."""
        own = programs.head_lora(activations.adapters[part.adapter])
        inputs = SliceInputs(part.index, part.targets, part.inputs)
        shared = (self._config, self._norm, self._head, own, np.int32(part.kind), activations.hidden)
        if not part.backward:
            return programs.head_forward(*shared, inputs)
        dhead = activations.dhead.pop(part.adapter, None) or zero_head(activations.adapters[part.adapter].weights)
        output, activations.dhidden, activations.dhead[part.adapter] = programs.head_backward(
            *shared, activations.dhidden, dhead, inputs
        )
        return output

    def backward(self, activations: Activations) -> Iterator[tuple[int, Gradient]]:
        """Carry what the head has written back through the layers: of each window, its adapter and the gradient."""
        windows, dhidden = activations.batch.windows, activations.dhidden
        of_windows: list[list[Weights]] = [[] for _ in windows]
        for layer in reversed(range(len(self._layers))):
            of_layer = activations.kept.pop()
            for window, found in zip(windows, of_windows, strict=True):
                dhidden, dfactors = programs.layer_backward(
                    self._config,
                    window.width,
                    self._layers[layer],
                    activations.adapters[window.adapter],
                    np.int32(layer),
                    of_layer.pop(0),
                    activations.place,
                    dhidden,
                    _at(window),
                )
                found.append(dfactors)
        for window, found in zip(windows, of_windows, strict=True):
            weights = activations.adapters[window.adapter].weights
            dhead = activations.dhead.pop(window.adapter, None) or zero_head(weights)
            yield window.adapter, Gradient(tuple(reversed(found)), dhead)


def _at(window: Window) -> At:
    return At(np.int32(window.start), np.array(window.reach, np.int32))


def loss_gradient(
    loss: Loss, logprobs: np.ndarray, inputs: Mapping[str, np.ndarray], real: np.ndarray
) -> tuple[Terms, np.ndarray]:
    """A loss that looks across positions, at (B, T) of one datum a row: its terms, and d(sum) / d(logprobs)."""
    return jax.device_get(_loss_program(loss)(logprobs, inputs, real))


@lru_cache(maxsize=LOSSES_COMPILED)
def _loss_program(loss: Loss):
    """A loss that falls out takes its compiled programs along; as a static argument jit would hold on to it."""

    def total(logprobs: jax.Array, inputs: Mapping[str, jax.Array], real: jax.Array) -> tuple[jax.Array, Terms]:
        _, terms = apply(loss.function, logprobs, inputs, real)
        return terms.loss.sum(), terms

    def evaluate(*arrays):
        gradient, terms = jax.grad(total, has_aux=True)(*arrays)
        return terms, gradient

    return jax.jit(evaluate)


def activation_bytes(config: ModelConfig, itemsize: int) -> int:
    """Device memory that a token's activations take between its forward and its backward pass.

    Of each layer: its input, the results of its products but the last, and of attention its result and sums.
    """
    attended = config.num_heads * config.head_dim
    products = 2 * config.hidden_size + attended + 2 * config.num_kv_heads * config.head_dim
    of_layer = products + attended + 2 * config.intermediate_size
    return config.num_layers * (of_layer * itemsize + 4 * config.num_heads)


def keep_tokens(config: ModelConfig, itemsize: int, most_bytes: int) -> int:
    """The largest power of two of tokens whose activations fit into ``most_bytes``, from 128 to 4,096."""
    return max(128, min(4096, 1 << int(np.log2(max(1, most_bytes // activation_bytes(config, itemsize))))))


def accumulate(total: Gradient | None, gradient: Gradient) -> Gradient:
    """``total + gradient``; ``total`` is donated."""
    return gradient if total is None else _add(total, gradient)


def optim_step(adapter: Adapter, params: AdamParams) -> OptimStepResult:
    """Apply the accumulated gradient (zero where there is none) with AdamW, and clear it.

    RequestError where the gradient is not finite: it is dropped, weights and moments stay as they were.
    """
    moments = adapter.moments if adapter.moments is not None else zero_moments(adapter.weights)
    gradient = adapter.gradient if adapter.gradient is not None else zero_gradient(adapter.weights)
    adapter.gradient = None
    values = {name: np.float32(getattr(params, name)) for name in AdamParams.__dataclass_fields__}
    *stepped, norm = _optim_step(adapter.weights, gradient, moments, values)
    norm = float(norm)  # waits: what fails on the device fails here, before anything is replaced
    if not np.isfinite(norm):
        raise RequestError("the accumulated gradient is not finite; it was dropped and the adapter is unchanged")
    adapter.weights, adapter.moments = stepped
    return OptimStepResult({"grad_norm": norm, "learning_rate": params.learning_rate, "step": float(adapter.step)})


@partial(jax.jit, donate_argnums=0)
def _add(total: Gradient, gradient: Gradient) -> Gradient:
    return jax.tree.map(jnp.add, total, gradient)


@jax.jit
@jax.named_scope("optimizer")
def _optim_step(weights: Weights, parts: Gradient, moments: optax.ScaleByAdamState, adam: Mapping[str, jax.Array]):
    """AdamW as torch has it. Nothing is donated: a snapshot may share the weights, and of what else is overwritten
    while it is read XLA would make a copy first.
    """
    gradient = parts.stacked()
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
    return optax.apply_updates(weights, updates), stepped, norm
