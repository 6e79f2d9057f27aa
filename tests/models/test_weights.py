"""Weights: GGUF as well as safetensors, and files that do not fit their configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from tests.models.compute import segment_attention
from tests.models.gguf_files import write_gguf
from tests.models.tiny import make_tiny
from txlab.config import ModelSettings
from txlab.models.base import BaseModel, load_base
from txlab.models.config import ModelConfig
from txlab.models.files import ModelFileError
from txlab.models.mesh import make_mesh
from txlab.models.weights import GGUFFile, SafetensorsFolder, WeightsError, load_parameters


def read_config(folder: Path) -> ModelConfig:
    return ModelConfig.from_hf(json.loads((folder / "config.json").read_text()))


def load(folder: Path) -> dict:
    return load_parameters(read_config(folder), SafetensorsFolder(folder), make_mesh())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model", num_hidden_layers=3)


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_kernels_are_kept_as_files_have_them(folder):
    parameters = load(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, kernel in (("q_proj", "self_attn.q_proj"), ("down_proj", "mlp.down_proj")):
        stacked = np.stack([tensors[f"model.layers.{i}.{kernel}.weight"] for i in range(3)])
        np.testing.assert_array_equal(parameters[f"layers.{name}"], stacked)
    np.testing.assert_array_equal(parameters["embedding"], tensors["model.embed_tokens.weight"])


def test_a_missing_tensor_is_named(folder):
    edit(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(WeightsError, match=r"lacks tensors: model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_an_unexpected_tensor_is_named(folder):
    edit(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}))
    with pytest.raises(WeightsError, match=r"unexpected tensors: model\.layers\.0\.self_attn\.q_norm\.weight"):
        load(folder)


def test_a_misshapen_tensor_is_named_in_its_own_layout(folder):
    name = "model.layers.2.self_attn.k_proj.weight"
    edit(folder, lambda tensors: tensors.update({name: np.ones((31, 64), np.float32)}))
    with pytest.raises(WeightsError, match=r"layers\.2\.self_attn\.k_proj.*\(31, 64\).*\(32, 64\)"):
        load(folder)


def test_missing_shards_are_named(tmp_path):
    folder = make_tiny(tmp_path / "model", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="lacks model-00002-of-00002"):
        SafetensorsFolder(folder)


def test_a_damaged_file_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(ModelFileError, match=r"model\.safetensors is damaged"):
        SafetensorsFolder(folder)


@pytest.mark.parametrize(
    ("family", "options"), [("llama", {}), ("qwen2", {"tie_word_embeddings": False}), ("qwen3", {})]
)
def test_gguf_gives_the_same_parameters_as_safetensors(tmp_path, family, options):
    folder = make_tiny(tmp_path / "model", family, **options)
    file = GGUFFile(write_gguf(folder, family, tmp_path / "model.gguf"))
    config = ModelConfig.from_gguf(file.metadata, file.names)
    expected = read_config(folder)
    for field in ("architecture", "head_dim", "tie_word_embeddings", "qkv_bias", "o_bias", "qk_norm", "max_context"):
        assert getattr(config, field) == getattr(expected, field), field
    for name, array in load_parameters(config, file, make_mesh()).items():
        np.testing.assert_array_equal(array, load(folder)[name], err_msg=name)


def load_file_all(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}


HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def other_head(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """A head that differs from the embedding in its very last number."""
    head = tensors[EMBEDDING].copy()
    head[-1, -1] += 0.5
    return head


def test_a_head_that_is_not_the_embedding_is_used_though_the_config_ties_them(tmp_path, caplog):
    """As transformers 5 does: both are stored and differ, so the configuration is wrong."""
    folder = make_tiny(tmp_path / "model", vocab_size=5000)  # more rows than are compared at a time
    edit(folder, lambda tensors: tensors.update({HEAD: other_head(tensors)}))
    base = load_base(ModelSettings(name=str(folder)))
    assert not base.config.tie_word_embeddings
    np.testing.assert_array_equal(base.decoder.head, load_file(folder / "model.safetensors")[HEAD])
    assert "tie_word_embeddings" in caplog.text


def test_a_head_that_is_the_embedding_costs_no_memory(folder, caplog):
    alone = load_base(ModelSettings(name=str(folder)))
    edit(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].copy()}))
    base = load_base(ModelSettings(name=str(folder)))
    assert base.config.tie_word_embeddings
    assert (base.memory_bytes, base.parameter_count) == (alone.memory_bytes, alone.parameter_count)
    assert caplog.text == ""


def test_a_tied_head_alone_is_the_embedding_too(folder):
    embedding = load_file(folder / "model.safetensors")[EMBEDDING]
    edit(folder, lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}))
    np.testing.assert_array_equal(load(folder)["embedding"], embedding)


def test_a_tied_head_of_another_shape_is_refused(folder):
    edit(folder, lambda tensors: tensors.update({HEAD: np.ones((321, 64), np.float32)}))
    with pytest.raises(WeightsError, match=r"lm_head\.weight.*\(321, 64\).*\(320, 64\)"):
        load_base(ModelSettings(name=str(folder)))


def test_an_untied_model_without_head_says_which_entry_would_tie_it(tmp_path):
    folder = make_tiny(tmp_path / "model", tie_word_embeddings=False)
    edit(folder, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(WeightsError, match=r"lacks tensors: lm_head\.weight.*tie_word_embeddings.*config\.json"):
        load(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", ["other", "same", "head alone"])
def test_logits_are_those_of_transformers_whatever_is_stored(tmp_path, tied, stored, torch):
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers 4 drops the head of a tied model")
    folder = make_tiny(tmp_path / "model", tie_word_embeddings=tied)
    if stored == "head alone" and not tied:
        pytest.skip("an untied model needs both")
    changes = {
        "other": lambda tensors: tensors.update({HEAD: other_head(tensors)}),
        "same": lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].copy()}),
        "head alone": lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}),
    }
    edit(folder, changes[stored])
    tokens = np.arange(20, 40, dtype=np.int32)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()
    found = base_logits(load_base(ModelSettings(name=str(folder))), tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-4)


def base_logits(base: BaseModel, tokens: np.ndarray) -> np.ndarray:  # (T, V)
    positions = np.arange(len(tokens))[None]
    hidden, _ = base.decoder(tokens[None], positions, segment_attention(np.ones_like(positions)))
    return np.asarray(base.decoder.unembed(hidden)[0])


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.up_proj.bias",
        "model.layers.0.post_feedforward_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.3.mlp.up_proj.weight",
        "lm_head.bias",
        "model.embed_positions.weight",
        "value_head.weight",
        "base_model.model.lm_head.lora_A.weight",
    ],
)
def test_tensors_that_nothing_reads_are_refused_by_name(folder, name):
    edit(folder, lambda tensors: tensors.update({name: np.ones(64, np.float32)}))
    with pytest.raises(WeightsError, match=re.escape(f"unexpected tensors: {name}")):
        load(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "rotary_emb.inv_freq"]
)
def test_frequencies_that_follow_from_the_config_are_of_no_consequence(folder, name):
    edit(folder, lambda tensors: tensors.update({name: np.ones(8, np.float32)}))
    load(folder)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.bool_])
def test_quantized_weights_are_not_taken_for_numbers(folder, dtype):
    name = "model.layers.1.mlp.up_proj.weight"
    edit(folder, lambda tensors: tensors.update({name: tensors[name].astype(dtype)}))
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*quantized"):
        load(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = make_tiny(tmp_path / "model", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    first = load_file(folder / "model-00001-of-00002.safetensors")
    save_file(load_file(shard) | {EMBEDDING: first[EMBEDDING] * 2}, shard)
    with pytest.raises(WeightsError, match=r"model\.embed_tokens\.weight.*both.*00001.*00002"):
        SafetensorsFolder(folder)


def test_a_whole_file_goes_before_shards(tmp_path):
    """As in transformers: what was merged into one file is not to be mixed up with the shards it came from."""
    folder = make_tiny(tmp_path / "model", shards=2)
    whole = {name: array * 2 for name, array in load_file_all(folder).items()}
    save_file(whole, folder / "model.safetensors")
    np.testing.assert_array_equal(load(folder)["embedding"], whole[EMBEDDING])
