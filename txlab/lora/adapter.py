"""One adapter on the device: its factors, its accumulated gradient and its Adam moments, all float32.

An adapter adds ``(32 / rank) * (x @ a) @ b`` to each linear layer that it adapts [LoRA, arXiv:2106.09685]. Layers
of one kind are stacked: ``a`` is (L, in, rank), ``b`` is (L, rank, out); ``lm_head`` has no layer axis.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Sharding

from txlab.lora.state import ALPHA, AdapterState, LoraConfig
from txlab.models.config import ATTENTION, MLP, UNEMBED, ModelConfig, projection_shapes

(HEAD,) = UNEMBED


class Factors(NamedTuple):
    """The two factors of a low-rank product."""

    a: Any  # (L, in, r), for lm_head (in, r); a JAX or NumPy array
    b: Any  # (L, r, out), for lm_head (r, out)


Weights = Mapping[str, Factors]


class Gradient(NamedTuple):
    """That of one adapter, as the backward pass leaves it: layer by layer, so that none is written twice."""

    layers: tuple[Weights, ...]  # (L) of a (in, r) and b (r, out)
    head: Factors | None  # None where ``lm_head`` is not adapted

    def stacked(self) -> Weights:
        """In the form of the adapter's weights."""
        layers = jax.tree.map(lambda *parts: jnp.stack(parts), *self.layers) if self.layers else {}
        return layers if self.head is None else {**layers, HEAD: self.head}


@dataclass(slots=True, weakref_slot=True, eq=False)
class Adapter:
    """An adapter's arrays. ``weights`` is replaced, never written in place, so that a snapshot can share it."""

    lora: LoraConfig
    weights: Weights
    gradient: Gradient | None = None  # sum of what was accumulated since the last step
    moments: optax.ScaleByAdamState | None = None  # only for adapters that train

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied by."""
        return ALPHA / self.lora.rank

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return 0 if self.moments is None else int(self.moments.count)

    @property
    def memory_bytes(self) -> int:
        """Device memory of all arrays."""
        return tree_bytes((self.weights, self.gradient, self.moments))


def tree_bytes(tree: object) -> int:
    """Bytes of all arrays in a pytree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def adapted_projections(lora: LoraConfig) -> tuple[str, ...]:
    """Names of the linear layers that ``lora`` trains, in one fixed order."""
    groups = ((lora.train_attn, ATTENTION), (lora.train_mlp, MLP), (lora.train_unembed, UNEMBED))
    return tuple(name for trained, names in groups if trained for name in names)


def initial_weights(config: ModelConfig, lora: LoraConfig, placement: Sharding) -> Weights:
    """A ~ uniform(-1/sqrt(in), 1/sqrt(in)), B = 0, from ``lora.seed`` alone (a random one where None).

    A projection's draw depends on the seed and its name, not on what else is trained.
    """
    seed = secrets.randbits(63) if lora.seed is None else lora.seed % 2**64
    words = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    shapes = projection_shapes(config)
    names = {name: (index, *shapes[name]) for index, name in enumerate(ATTENTION + MLP + UNEMBED)}
    chosen = tuple((name, *names[name]) for name in adapted_projections(lora))
    return jax.device_put(_draw(words, chosen, config.num_layers, lora.rank), placement)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(words: jax.Array, projections: tuple[tuple[str, int, int, int], ...], layers: int, rank: int) -> Weights:
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    weights = {}
    for name, index, n_in, n_out in projections:
        stacked = () if name in UNEMBED else (layers,)
        bound = n_in**-0.5
        a = jax.random.uniform(jax.random.fold_in(key, index), (*stacked, n_in, rank), jnp.float32, -bound, bound)
        weights[name] = Factors(a, jnp.zeros((*stacked, rank, n_out), jnp.float32))
    return weights


def zero_gradient(weights: Weights) -> Gradient:
    """The gradient of an adapter whose ``weights`` nothing depends on."""
    of_layers = {name: factors for name, factors in weights.items() if name not in UNEMBED}
    depth = max((len(factors.a) for factors in of_layers.values()), default=0)
    return Gradient(tuple(_zeros(of_layers, skip=1) for _ in range(depth)), zero_head(weights))


def zero_head(weights: Weights) -> Factors | None:
    """Zeros of the shapes of the head's factors; None where it is not adapted."""
    return _zeros(weights[HEAD]) if HEAD in weights else None


def zero_moments(weights: Weights) -> optax.ScaleByAdamState:
    """Adam's moments before the first step, placed as the weights are."""
    placement = jax.tree.leaves(weights)[0].sharding
    return optax.ScaleByAdamState(count=jax.device_put(np.int32(0), placement), mu=_zeros(weights), nu=_zeros(weights))


def to_state(adapter: Adapter, optimizer: bool) -> AdapterState:
    """Copy an adapter to host memory. ``optimizer``: its moments too (zeros where it has not trained)."""
    moments = adapter.moments if adapter.moments is not None else zero_moments(adapter.weights)
    host = jax.device_get((adapter.weights, moments) if optimizer else (adapter.weights, None))
    return AdapterState(
        lora=adapter.lora,
        weights=_flatten(host[0]),
        step=adapter.step,
        first_moment=_flatten(host[1].mu) if optimizer else None,
        second_moment=_flatten(host[1].nu) if optimizer else None,
    )


def from_state(state: AdapterState, config: ModelConfig, placement: Sharding) -> Adapter:
    """Bring a checkpoint's adapter to the device. ValueError where it does not fit the base model."""
    _check_shapes(state, config)
    adapter = Adapter(state.lora, _unflatten(state.weights, placement))
    if state.first_moment is not None and state.second_moment is not None:
        adapter.moments = optax.ScaleByAdamState(
            count=jax.device_put(np.int32(state.step), placement),
            mu=_unflatten(state.first_moment, placement),
            nu=_unflatten(state.second_moment, placement),
        )
    return adapter


def _zeros(weights: Any, skip: int = 0) -> Any:
    """Zeros of the weights' shapes without the first ``skip`` axes, placed as the weights are.

    From the host: as fast as a program, and needs none.
    """
    return jax.tree.map(lambda array: jax.device_put(np.zeros(array.shape[skip:], np.float32), array.sharding), weights)


def _check_shapes(state: AdapterState, config: ModelConfig) -> None:
    shapes = projection_shapes(config)
    expected = {}
    for name in adapted_projections(state.lora):
        n_in, n_out = shapes[name]
        stacked = () if name in UNEMBED else (config.num_layers,)
        expected[f"{name}.a"] = (*stacked, n_in, state.lora.rank)
        expected[f"{name}.b"] = (*stacked, state.lora.rank, n_out)
    for part in (state.weights, state.first_moment, state.second_moment):
        if part is None:
            continue
        found = {name: tuple(array.shape) for name, array in part.items()}
        if found != expected:
            wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            raise ValueError(f"the adapter does not fit this base model: {', '.join(wrong[:4])} missing or misshapen")


def _flatten(weights: Weights) -> dict[str, np.ndarray]:
    pairs = ((name, factors._asdict()) for name, factors in weights.items())
    return {f"{name}.{factor}": np.asarray(array) for name, both in pairs for factor, array in both.items()}


def _unflatten(arrays: Mapping[str, np.ndarray], placement: Sharding) -> Weights:
    names = dict.fromkeys(key.rsplit(".", 1)[0] for key in arrays)
    host = {name: Factors(arrays[f"{name}.a"], arrays[f"{name}.b"]) for name in names}
    return jax.device_put(host, placement)
