"""Configurations: what is read, and what is refused by name."""

from __future__ import annotations

import pytest

from txlab.models.config import ModelConfig, RopeScaling, UnsupportedModel, projection_shapes
from txlab.models.files import ModelFileError

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": None}, "config.json lacks 'vocab_size'"),
        ({"hidden_size": None}, "config.json lacks 'hidden_size'"),
        ({"intermediate_size": None}, "config.json lacks 'intermediate_size'"),
        ({"num_hidden_layers": None}, "config.json lacks 'num_hidden_layers'"),
        ({"num_attention_heads": None}, "config.json lacks 'num_attention_heads'"),
        ({"hidden_size": "32"}, "hidden_size='32': expected a positive whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers=1.5"),
        ({"vocab_size": True}, "vocab_size=True"),
        ({"head_dim": "8"}, "head_dim='8'"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings='long'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3.*divisor of num_attention_heads, 4"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5': expected a positive number"),
        ({"rope_theta": "5e5"}, "rope_theta='5e5'"),
        ({"rope_theta": -1}, "rope_theta=-1"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false': expected true or false"),
        ({"attention_bias": "no"}, "attention_bias='no'"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear': expected an object"),
        ({"quantization_config": "awq"}, "quantization_config='awq'"),
        ({"architectures": "GPT2LMHeadModel"}, "architecture 'GPT2LMHeadModel'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope parameters of config.json lacks 'factor'"),
        ({"rope_scaling": {"type": "yarn"}}, "lacks 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor='2'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor=0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, "lacks 'factor'"),
        *(
            ({"rope_scaling": {key: value for key, value in LLAMA3.items() if key != missing}}, f"lacks '{missing}'")
            for missing in ("factor", "low_freq_factor", "high_freq_factor")
        ),
        (
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": "64"}},
            "original_max_position_embeddings='64'",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": "1"}}, "attention_factor='1'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": "no"}}, "truncate='no'"),
    ],
)
def test_an_entry_that_is_missing_or_of_another_type_is_named(change, message):
    with pytest.raises(ModelFileError, match=message):
        ModelConfig.from_hf(LLAMA | change)


def test_a_factor_of_yarn_that_is_null_is_the_stretch_of_the_context():
    """As transformers has it."""
    yarn = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}
    scaling = ModelConfig.from_hf(LLAMA | {"rope_scaling": yarn}).rope_scaling
    assert scaling is not None
    assert scaling.factor == 4.0


def test_rope_parameters_by_kind_of_layer():
    """As transformers 5 may write them for models whose layers are all of one kind."""
    nested = {
        "layer_types": ["full_attention"] * 3,
        "rope_parameters": {"full_attention": LLAMA3 | {"rope_theta": 5e5}},
    }
    plain = ModelConfig.from_hf(LLAMA | {"rope_scaling": LLAMA3})
    assert ModelConfig.from_hf({k: v for k, v in LLAMA.items() if k != "rope_theta"} | nested) == plain


@pytest.mark.parametrize(
    "scaling", [LLAMA3, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}]
)
def test_the_length_of_training_beside_the_rope_parameters_counts(scaling):
    """As transformers reads it, of whatever the parameters say themselves."""
    found = ModelConfig.from_hf(LLAMA | {"rope_scaling": scaling, "original_max_position_embeddings": 32}).rope_scaling
    assert found is not None
    assert found.original_context == 32


def test_linear_scaling_knows_no_length_of_training():
    linear = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    plain = ModelConfig.from_hf(LLAMA | linear)
    assert ModelConfig.from_hf(LLAMA | linear | {"original_max_position_embeddings": 32}) == plain
