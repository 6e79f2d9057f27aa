"""Counted FLOPs against sums written out, and against what XLA counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from txlab.lora.state import LoraConfig
from txlab.models.config import ModelConfig
from txlab.profiling.flops import adapter_parameters, product_parameters, step_flops

TINY = ModelConfig("LlamaForCausalLM", 50, 8, 12, 2, num_heads=4, num_kv_heads=2, head_dim=3, max_context=64)
SMOLLM2 = ModelConfig("LlamaForCausalLM", 49152, 576, 1536, 30, 9, 3, 64, 8192, tie_word_embeddings=True)


def test_parameters_that_tokens_are_multiplied_with() -> None:
    layer = 8 * 12 + 2 * 8 * 6 + 12 * 8 + 3 * 8 * 12
    assert product_parameters(TINY) == 2 * layer + 8 * 50
    assert product_parameters(SMOLLM2) == 134_479_872  # as llama.cpp counts it, without its norms


def test_parameters_of_adapters() -> None:
    attention = LoraConfig(4, train_mlp=False, train_unembed=False)
    assert adapter_parameters(TINY, attention) == 2 * 4 * ((8 + 12) + 2 * (8 + 6) + (12 + 8))
    assert adapter_parameters(TINY, LoraConfig(4)) - adapter_parameters(TINY, LoraConfig(4, train_unembed=False)) == 232


def test_three_tokens_by_hand() -> None:
    lora, base, adapter = LoraConfig(32), 134_479_872, 11_360_256
    attention = 30 * 9 * 64 * 2 * (1 + 2 + 3)  # scores of three queries over what they see; values as much
    forward = 3 * 2 * (base + adapter) + 2 * attention
    assert step_flops(SMOLLM2, lora, [3], backward=False) == forward
    assert step_flops(SMOLLM2, lora, [3]) == forward + 3 * (2 * base + 4 * adapter) + 4 * attention


def test_a_token_of_the_default_model_takes_six_tenths_of_a_gigaflop() -> None:
    each = step_flops(SMOLLM2, LoraConfig(32), [128] * 8) / (8 * 128)
    assert each == pytest.approx(0.6e9, rel=0.05)


def test_sequences_add_up_and_long_ones_cost_more() -> None:
    lora = LoraConfig(4)
    assert step_flops(TINY, lora, [5, 9]) == step_flops(TINY, lora, [5]) + step_flops(TINY, lora, [9])
    assert step_flops(TINY, lora, [10]) > 2 * step_flops(TINY, lora, [5])


def test_attention_is_what_a_causal_triangle_costs() -> None:
    """Two products forward and four backward, over the pairs of a query and a key that it sees."""
    n, heads, size, layers = 16, 4, 3, 2
    pairs = jnp.tril(jnp.ones((n, n))).sum()
    expected = layers * heads * int(pairs) * 6 * 2 * size
    none = LoraConfig(1, train_attn=False, train_mlp=False, train_unembed=False)
    assert step_flops(TINY, none, [n]) - 4 * n * product_parameters(TINY) == expected


def test_an_adapter_is_what_xla_counts() -> None:
    """Each adapted product and its gradient by the input and by both factors."""

    def step(x, a, b, dy):
        y, pull = jax.vjp(lambda x, a, b: (x @ a) @ b, x, a, b)
        return y, pull(dy)

    n, n_in, rank, n_out = 16, TINY.hidden_size, 4, TINY.vocab_size
    sizes = ((n, n_in), (n_in, rank), (rank, n_out), (n, n_out))
    cost = jax.jit(step).lower(*(jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)).cost_analysis()
    without, on_the_head = (LoraConfig(rank, None, False, False, unembed) for unembed in (False, True))
    assert step_flops(TINY, on_the_head, [n]) - step_flops(TINY, without, [n]) == cost["flops"]
