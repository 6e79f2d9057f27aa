"""Adapters as PEFT's files: the structure always, and where torch is installed the logits too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save_file
from transformers import AutoModelForCausalLM

from tests.models.compute import segment_attention
from tests.models.tiny import make_tiny
from txlab.config import ModelSettings
from txlab.lora.adapter import from_state
from txlab.lora.adapter_set import combine
from txlab.lora.linear import LoraProjector
from txlab.lora.peft import WEIGHTS_FILE, from_peft, peft_files
from txlab.lora.peft_options import CONFIG_FILE, PeftError
from txlab.lora.state import AdapterState, LoraConfig
from txlab.models.base import BaseModel, load_base
from txlab.models.config import ATTENTION, MLP, UNEMBED, ModelConfig, projection_shapes
from txlab.models.mesh import replicated

CONFIG = ModelConfig("LlamaForCausalLM", 320, 64, 128, 2, 4, 2, 16, 512)
ALL = LoraConfig(rank=4)


def adapter(lora: LoraConfig = ALL, seed: int = 0) -> AdapterState:
    rng = np.random.default_rng(seed)
    weights = {}
    groups = ((lora.train_attn, ATTENTION), (lora.train_mlp, MLP), (lora.train_unembed, UNEMBED))
    for name in (name for trained, names in groups if trained for name in names):
        n_in, n_out = projection_shapes(CONFIG)[name]
        layers = () if name in UNEMBED else (CONFIG.num_layers,)
        weights[f"{name}.a"] = rng.normal(0, n_in**-0.5, (*layers, n_in, lora.rank)).astype(np.float32)
        weights[f"{name}.b"] = rng.normal(0, 0.1, (*layers, lora.rank, n_out)).astype(np.float32)
    return AdapterState(lora, weights)


def export(folder: Path, state: AdapterState, **settings) -> Path:
    """Write PEFT's files, with entries of adapter_config.json replaced."""
    folder.mkdir(exist_ok=True)
    for name, data in peft_files(state, "some/base").items():
        (folder / name).write_bytes(data)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | settings))
    return folder


def test_the_config_says_what_peft_has_to_know():
    config = json.loads(peft_files(adapter(), "some/base")[CONFIG_FILE])
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert config["base_model_name_or_path"] == "some/base"
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 32, False)
    assert config["target_modules"] == sorted([*ATTENTION, *MLP, *UNEMBED])


def test_every_layer_has_its_own_transposed_factors():
    state = adapter()
    tensors = load(peft_files(state, "some/base")[WEIGHTS_FILE])
    assert len(tensors) == 2 * (2 * 7 + 1)
    up = "base_model.model.model.layers.1.mlp.up_proj"
    np.testing.assert_array_equal(tensors[f"{up}.lora_A.weight"], state.weights["up_proj.a"][1].T)
    np.testing.assert_array_equal(tensors[f"{up}.lora_B.weight"], state.weights["up_proj.b"][1].T)
    query = "base_model.model.model.layers.0.self_attn.q_proj"
    np.testing.assert_array_equal(tensors[f"{query}.lora_A.weight"], state.weights["q_proj.a"][0].T)
    np.testing.assert_array_equal(tensors["base_model.model.lm_head.lora_B.weight"], state.weights["lm_head.b"].T)


@pytest.mark.parametrize(
    "lora",
    [
        ALL,
        LoraConfig(3, train_mlp=False, train_unembed=False),
        LoraConfig(1, train_attn=False, train_unembed=False),
        LoraConfig(2, train_attn=False, train_mlp=False),
    ],
    ids=["all", "attention", "mlp", "unembed"],
)
def test_there_and_back(tmp_path, lora):
    state = adapter(lora)
    back = from_peft(export(tmp_path, state), CONFIG)
    assert (back.lora, back.step, back.first_moment) == (lora, 0, None)
    assert back.weights.keys() == state.weights.keys()
    for name, array in back.weights.items():
        np.testing.assert_array_equal(array, state.weights[name])
        assert (array.dtype, array.flags.c_contiguous) == (np.float32, True)


def test_another_alpha_is_taken_into_b(tmp_path):
    state = adapter()
    back = from_peft(export(tmp_path, state, lora_alpha=8), CONFIG)
    np.testing.assert_array_equal(back.weights["q_proj.a"], state.weights["q_proj.a"])
    np.testing.assert_allclose(back.weights["q_proj.b"], state.weights["q_proj.b"] / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA': only plain LoRA"),
        ({"bias": "all"}, "bias='all'"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"use_dora": True}, "use_dora=True"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save="),
        ({"layers_to_transform": [0]}, "layers_to_transform="),
        ({"target_modules": ["q_proj", "v_proj"]}, "target_modules lacks k_proj, o_proj"),
        ({"target_modules": ["c_attn"]}, "target_modules names c_attn: this lab adapts"),
        ({"target_modules": "all-linear"}, "target_modules='all-linear': expected a list"),
        ({"r": 0}, "r=0: expected a positive number"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"r": 5}, r"has shape \(4, 64\): this model and rank want \(5, 64\)"),
        ({"target_modules": [*ATTENTION, *MLP]}, "tensors of no use to this model: base_model.model.lm_head"),
    ],
)
def test_what_is_no_plain_lora_of_ours_is_refused_by_name(tmp_path, settings, message):
    with pytest.raises(PeftError, match=message):
        from_peft(export(tmp_path, adapter(), **settings), CONFIG)


def test_missing_and_broken_files_are_told(tmp_path):
    with pytest.raises(PeftError, match=r"is no PEFT adapter: No such file.*adapter_config.json"):
        from_peft(tmp_path, CONFIG)
    export(tmp_path, adapter())
    (tmp_path / WEIGHTS_FILE).write_bytes(b"12")
    with pytest.raises(PeftError, match="is broken"):
        from_peft(tmp_path, CONFIG)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(PeftError, match=r"is no PEFT adapter"):
        from_peft(tmp_path, CONFIG)
    export(tmp_path, adapter())
    for text in ("{", "[]"):
        (tmp_path / CONFIG_FILE).write_text(text)
        with pytest.raises(PeftError, match="is broken"):
            from_peft(tmp_path, CONFIG)


def test_an_adapter_of_a_deeper_model_is_refused(tmp_path):
    export(tmp_path, adapter())
    tensors = load((tmp_path / WEIGHTS_FILE).read_bytes())
    del tensors["base_model.model.model.layers.1.mlp.gate_proj.lora_B.weight"]
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(PeftError, match=r"has no 'base_model\.model\.model\.layers\.1\.mlp\.gate_proj\.lora_B"):
        from_peft(tmp_path, CONFIG)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("lora", [ALL, LoraConfig(8, train_unembed=False)], ids=["all", "blocks"])
def test_peft_computes_the_same_logits(tmp_path, tied, lora, torch, peft):
    folder = make_tiny(tmp_path / "tiny", "llama", tie_word_embeddings=tied)
    state = adapter(lora)
    tokens = np.random.default_rng(1).integers(5, 300, 24).astype(np.int32)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    plain = logits(base, tokens)
    adapted = logits(peft.PeftModel.from_pretrained(base, export(tmp_path / "adapter", state)), tokens)
    assert np.abs(adapted - plain).max() > 0.1, "the adapter does nothing"
    np.testing.assert_allclose(adapted, ours(load_base(ModelSettings(name=str(folder))), state, tokens), atol=2e-4)


def test_what_peft_saved_is_read(tmp_path, torch, peft):
    folder = make_tiny(tmp_path / "tiny", "llama", tie_word_embeddings=False)
    tokens = np.arange(20, 40, dtype=np.int32)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    settings = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=[*ATTENTION, *MLP], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, settings)
    model.save_pretrained(tmp_path / "saved")
    state = from_peft(tmp_path / "saved", CONFIG)
    np.testing.assert_allclose(
        ours(load_base(ModelSettings(name=str(folder))), state, tokens), logits(model, tokens), atol=2e-4
    )


def logits(model, tokens: np.ndarray) -> np.ndarray:  # (T, V)
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()


def ours(base: BaseModel, state: AdapterState, tokens: np.ndarray) -> np.ndarray:  # (T, V)
    own = from_state(state, base.config, replicated(base.mesh))
    adapters = combine([own], base.config.num_layers, replicated(base.mesh))
    project = LoraProjector(adapters.layers, adapters.head, None)
    positions = np.arange(len(tokens))[None]
    hidden, _ = base.decoder(tokens[None], positions, segment_attention(np.ones_like(positions)), project=project)
    return np.asarray(base.decoder.unembed(hidden, project)[0])
