"""Weights: GGUF as well as safetensors, and files that do not fit their configuration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.gguf_files import write_gguf
from tests.models.tiny import make_tiny
from txlab.models.config import ModelConfig
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
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
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
