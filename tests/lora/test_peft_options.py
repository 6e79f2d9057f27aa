"""Every option of PEFT's LoraConfig and what becomes of an adapter that has it: read, or refused by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from tests.lora.test_peft import CONFIG, adapter, export
from txlab.lora.peft import from_peft
from txlab.lora.peft_options import PeftError
from txlab.models.config import ATTENTION, MLP, UNEMBED

ALL = [*ATTENTION, *MLP, *UNEMBED]

# option -> values under which an adapter is read, values under which it is refused
OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    # what an adapter is
    "peft_type": (["LORA", None], ["LOHA", "ADALORA", "MISS"]),
    "task_type": (["CAUSAL_LM", None], ["SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"]),
    "r": ([4], [0, -4, None, "4", 4.5, True, 5]),
    "lora_alpha": ([32, 8, 0.5], [0, -1, None, "16", True]),
    "target_modules": (
        [ALL, [f"model.layers.{i}.{m}" for i in (0, 1) for m in ("self_attn.q_proj", "mlp.up_proj")] + ALL],
        [None, [], "all-linear", ".*_proj", ["q_proj"], [*ALL, "embed_tokens"], [7], [*ATTENTION, *MLP]],
    ),
    "exclude_modules": ([None, [], ["embed_tokens"], ".*vision.*"], [["lm_head"], ["q_proj"]]),
    # how it began: the base model stays as it is, or is changed
    "init_lora_weights": (
        [True, False, None, "gaussian", "Gaussian", "orthogonal", "eva", "mica"],
        ["pissa", "PiSSA", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga", "of_tomorrow", 1.5],
    ),
    "loftq_config": ([None, {}, {"loftq_bits": 4}], []),
    "eva_config": ([None, {"rho": 2.0}], []),
    "corda_config": ([None, {"corda_method": "kpm"}], []),
    "lora_ga_config": ([None, {"direction": "ArB2r"}], []),
    # what it computes
    "use_dora": ([False, None], [True]),
    "use_rslora": ([False, None], [True]),
    "use_qalora": ([False, None], [True]),
    "qalora_group_size": ([16, None], []),
    "lora_bias": ([False, None], [True]),
    "bias": (["none", None], ["all", "lora_only"]),
    "fan_in_fan_out": ([False, None], [True]),
    "rank_pattern": ([{}, None], [{"q_proj": 8}]),
    "alpha_pattern": ([{}, None], [{"q_proj": 8}]),
    "layers_to_transform": ([None, []], [[0], 1]),
    "layers_pattern": ([None, [], "layers"], []),
    "layer_replication": ([None, []], [[[0, 1], [0, 2]]]),
    "modules_to_save": ([None, []], [["embed_tokens"], ["classifier", "score"]]),
    "trainable_token_indices": ([None, [], {}], [[1, 2], {"embed_tokens": [3]}]),
    "target_parameters": ([None, []], [["mlp.experts.down_proj"]]),
    "alora_invocation_tokens": ([None, []], [[1, 2]]),
    "velora_config": ([None, {}], [{"num_groups": 4}]),
    "monteclora_config": ([None, {}], [{"num_samples": 8}]),
    "kasa_config": ([None, {}], [{"beta": 1e-4}]),
    "arrow_config": ([None, {}], [{"top_k": 3}]),
    "use_bdlora": ([None, False, {}], [{"nblocks": 2}, True]),
    "ensure_weight_tying": ([False, None], [True]),
    "megatron_config": ([None, {}], [{"hidden_size": 64}]),
    "megatron_core": (["megatron.core", None], []),
    # what concerns training alone, or nobody
    "lora_dropout": ([0.0, 0.1], []),
    "inference_mode": ([True, False], []),
    "base_model_name_or_path": (["some/base", "", None], []),
    "revision": ([None, "main"], []),
    "auto_mapping": ([None, {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}], []),
    "peft_version": (["0.21.2", "99.0"], []),
    "runtime_config": ([None, {"ephemeral_gpu_offload": True}], []),
    # of forks, and of versions to come: a switch that is on, or a setting that may concern something that is off
    "enable_lora": ([None, []], [[True, False, True]]),
    "use_something_new": ([None, False, 0, 8, "auto", "", {}, []], [True, {"nblocks": 2}, ["q_proj"]]),
}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, (read, _) in OPTIONS.items() for value in read]
)
def test_these_are_read(tmp_path, option, value):
    assert from_peft(export(tmp_path, adapter(), **{option: value}), CONFIG).lora.rank == 4


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, (_, refused) in OPTIONS.items() for value in refused]
)
def test_these_are_refused(tmp_path, option, value):
    with pytest.raises(PeftError) as error:
        from_peft(export(tmp_path, adapter(), **{option: value}), CONFIG)
    told_by_tensors = option in ("target_modules", "exclude_modules", "r")  # it is they that do not fit then
    assert told_by_tensors or option in str(error.value)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"])
def test_an_adapter_that_changed_its_base_is_refused_with_pefts_conversion(tmp_path, init):
    with pytest.raises(PeftError, match=r"path_initial_model_for_weight_conversion.*merge_and_unload"):
        from_peft(export(tmp_path, adapter(), init_lora_weights=init), CONFIG)


def test_loftq_has_no_conversion(tmp_path):
    with pytest.raises(PeftError, match="merge_and_unload") as error:
        from_peft(export(tmp_path, adapter(), init_lora_weights="loftq"), CONFIG)
    assert "path_initial_model_for_weight_conversion" not in str(error.value)


def test_the_table_has_every_option_of_this_peft(peft):
    assert {field.name for field in fields(peft.LoraConfig)} <= OPTIONS.keys()
