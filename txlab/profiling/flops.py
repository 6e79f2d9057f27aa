"""What a training step has to compute, counted from the sizes of model and adapter."""

from __future__ import annotations

from collections.abc import Iterable

from txlab.lora.adapter import adapted_projections
from txlab.lora.state import LoraConfig
from txlab.models.config import UNEMBED, ModelConfig, projection_shapes


def layer_parameters(config: ModelConfig) -> int:
    """Weights of all layers that every token is multiplied with."""
    shapes = projection_shapes(config)
    return config.num_layers * sum(n_in * n_out for name, (n_in, n_out) in shapes.items() if name not in UNEMBED)


def product_parameters(config: ModelConfig) -> int:
    """P: the same and the head. The embedding is looked up, not multiplied with."""
    return layer_parameters(config) + config.hidden_size * config.vocab_size


def adapter_parameters(config: ModelConfig, lora: LoraConfig) -> int:
    """p: the weights of both factors of every adapted projection."""
    shapes = projection_shapes(config)
    copies = {name: 1 if name in UNEMBED else config.num_layers for name in shapes}
    return sum(lora.rank * sum(shapes[name]) * copies[name] for name in adapted_projections(lora))


def step_flops(config: ModelConfig, lora: LoraConfig, lengths: Iterable[int], backward: bool = True) -> int:
    """FLOPs of one forward_backward, or forward, over sequences of ``lengths`` tokens; a multiply-add is two.

    Of each token of a sequence of n, with P and p as above, L layers and H heads of size d::

                                             forward           backward
        the base, to the activations alone   2 P               2 P
        the adapter, to input and weights    2 p               4 p
        attention, over (n + 1) / 2 keys     2 L H d (n + 1)   4 L H d (n + 1)

    Elementwise work and the optimizer are not counted, nor is what is recomputed or padded.
    """
    base, adapter = 2 * product_parameters(config), 2 * adapter_parameters(config, lora)
    attention = 2 * config.num_layers * config.num_heads * config.head_dim
    per_token = base + adapter + (base + 2 * adapter) * backward
    return sum(n * per_token + n * (n + 1) * attention * (3 if backward else 1) for n in lengths)
