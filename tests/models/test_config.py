"""Configurations: what is read, and what is refused by name."""

from __future__ import annotations

import pytest

from txlab.models.config import ModelConfig, RopeScaling, UnsupportedModel, projection_shapes

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": 5e5,
    "bos_token_id": 1,
    "eos_token_id": [2, 7],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_both_spellings_of_rope_are_the_same():
    old = ModelConfig.from_hf(LLAMA | {"rope_scaling": LLAMA3})
    new = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    assert ModelConfig.from_hf(new | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}) == old
    assert old.rope_theta == 5e5
    assert old.rope_scaling == RopeScaling("llama3", 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0)


def test_defaults_and_special_ids():
    config = ModelConfig.from_hf(LLAMA, {"eos_token_id": 9})
    assert (config.head_dim, config.tie_word_embeddings, config.qkv_bias, config.qk_norm) == (8, False, False, False)
    assert (config.bos_ids, config.eos_ids) == ((1,), (9, 2, 7))


def test_projection_shapes_are_in_out():
    shapes = projection_shapes(ModelConfig.from_hf(LLAMA | {"head_dim": 16}))
    assert shapes["q_proj"] == (32, 64)
    assert shapes["k_proj"] == shapes["v_proj"] == (32, 32)
    assert shapes["o_proj"] == (64, 32)
    assert shapes["down_proj"] == (48, 32)
    assert shapes["lm_head"] == (32, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel'.*LlamaForCausalLM, Qwen2.*, Qwen3"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope type 'longrope'.*linear, llama3, yarn"),
        ({"hidden_act": "gelu"}, "activation 'gelu'.*silu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "sliding window.*full attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization 'awq'"),
    ],
)
def test_what_would_be_computed_differently_is_refused_by_name(change, message):
    with pytest.raises(UnsupportedModel, match=message):
        ModelConfig.from_hf(LLAMA | change)


def test_an_unused_window_is_no_window():
    assert ModelConfig.from_hf(LLAMA | {"use_sliding_window": True, "max_window_layers": 3})


def test_gguf_of_another_architecture_is_refused():
    with pytest.raises(UnsupportedModel, match=r"GGUF architecture 'mamba'.*llama, qwen2, qwen3"):
        ModelConfig.from_gguf({"general.architecture": "mamba"}, frozenset())


def test_ids_that_are_no_tokens_are_left_out_and_told(caplog):
    """Published files name ids beyond the vocabulary, negative ones, and worse."""
    given = {"eos_token_id": [9, 151645, -1, None, True, "2", 2.0, [3]], "bos_token_id": 100}
    config = ModelConfig.from_hf(LLAMA, given)
    assert (config.bos_ids, config.eos_ids) == ((1,), (9, 2, 7))
    assert [record.message for record in caplog.records] == [
        "bos_token_id: left out 100: tokens of this model are 0 … 99",
        "eos_token_id: left out 151645, -1, True, '2', 2.0, [3]: tokens of this model are 0 … 99",
    ]


@pytest.mark.parametrize("value", [None, -1, 100, False, "</s>", {}])
def test_one_id_that_is_no_token(value):
    assert ModelConfig.from_hf(LLAMA | {"eos_token_id": value}).eos_ids == ()


def test_known_ids_say_nothing(caplog):
    assert ModelConfig.from_hf(LLAMA, {"eos_token_id": [2, 0, 99]}).eos_ids == (2, 0, 99, 7)
    assert not caplog.records
