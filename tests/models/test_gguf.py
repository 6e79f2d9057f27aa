"""GGUF files, read whole: the models they hold, and files that are not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from tokenizers import Tokenizer, decoders

from tests.models.compute import full_logits
from tests.models.gguf_files import AWKWARD, CONTROL, OWN, USER_DEFINED, metadata, train, write_gguf
from tests.models.tiny import make_tiny
from txlab.config import ModelSettings
from txlab.models.attention import rope_frequencies
from txlab.models.base import load_base, open_model
from txlab.models.config import ModelConfig, UnsupportedModel
from txlab.models.weights import GGUFFile, WeightsError

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def rope_factors(folder: Path) -> np.ndarray:
    """Factors as llama.cpp's converter writes them for Llama 3.1: unscaled frequencies over scaled ones."""
    scaled = open_model(ModelSettings(name=str(folder))).config
    plain = ModelConfig(**{name: getattr(scaled, name) for name in scaled.__slots__} | {"rope_scaling": None})
    return (rope_frequencies(plain)[0] / rope_frequencies(scaled)[0]).astype(np.float32)


def tokenizer_entries(kind: str, size: int, **more) -> tuple[Tokenizer, dict]:
    own = train(OWN[kind], size - 3)
    own.decoder = decoders.ByteLevel()
    added = {"<|begin_of_text|>": CONTROL, "<|eot_id|>": CONTROL, "<think>": USER_DEFINED}
    ids = {"bos_token_id": size - 3, "eos_token_id": size - 2}
    return own, metadata(own, kind, added, **ids, **more)


@pytest.mark.parametrize(
    ("family", "kind", "options"),
    [
        ("llama", "llama-bpe", {"rope_parameters": LLAMA3}),
        ("llama", "llama-bpe", {"rope_parameters": LLAMA3 | {"factor": 32.0}, "head_dim": 32}),
        ("qwen2", "qwen2", {"tie_word_embeddings": False}),
        ("qwen2", "deepseek-r1-qwen", {}),
        ("qwen3", "qwen2", {}),
    ],
)
def test_a_file_is_the_model_of_the_folder_that_it_was_made_of(tmp_path, family, kind, options):
    folder = make_tiny(tmp_path / "model", family, vocab_size=500, max_position_embeddings=1024, **options)
    own, entries = tokenizer_entries(kind, 500)

    def add_factors(writer: GGUFWriter) -> None:
        if "rope_parameters" in options:
            writer.add_tensor("rope_freqs.weight", rope_factors(folder))

    path = write_gguf(folder, family, tmp_path / "model.gguf", entries, add_factors)
    base = load_base(ModelSettings(name=str(path), cache=tmp_path / "cache"))
    prompt = np.random.default_rng(3).integers(0, 500, (1, 200))
    np.testing.assert_allclose(
        full_logits(base, prompt), full_logits(load_base(ModelSettings(name=str(folder))), prompt), rtol=1e-4, atol=1e-4
    )
    assert base.eos_ids == (498,)
    begin = [497] if kind == "llama-bpe" else []
    for text in AWKWARD:
        if "\u0301" not in text:  # Qwen composes characters first
            assert base.tokenizer.encode(text) == begin + own.encode(text).ids


def test_every_end_that_the_file_names_ends_a_turn(tmp_path):
    folder = make_tiny(tmp_path / "model", vocab_size=500)
    _, entries = tokenizer_entries("llama-bpe", 500, eot_token_id=7, eom_token_id=9)
    path = write_gguf(folder, "llama", tmp_path / "model.gguf", entries)
    assert open_model(ModelSettings(name=str(path), cache=tmp_path / "cache")).config.eos_ids == (498, 7, 9)


@pytest.mark.parametrize("number", [0, 2])
def test_one_part_of_a_split_file_says_how_the_parts_are_joined(tmp_path, number):
    folder = make_tiny(tmp_path / "model")

    def add_split(writer: GGUFWriter) -> None:
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)

    path = tmp_path / f"tiny-{number + 1:05d}-of-00003.gguf"
    if number == 0:
        write_gguf(folder, "llama", path, more=add_split)
    else:  # only the first has what the model is
        writer = GGUFWriter(path, "llama")
        add_split(writer)
        writer.add_tensor("blk.1.attn_q.weight", np.ones((4, 4), np.float32))
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
    message = (
        rf"tiny-{number + 1:05d}-of-00003\.gguf is part {number + 1} of 3 .*"
        r"llama-gguf-split --merge tiny-00001-of-00003\.gguf tiny\.gguf"
    )
    with pytest.raises(WeightsError, match=message):
        load_base(ModelSettings(name=str(path), cache=tmp_path / "cache"))


def test_a_file_without_a_tokenizer_is_refused(tmp_path):
    folder = make_tiny(tmp_path / "model")
    for entries, message in (
        ({"tokenizer.ggml.model": "none"}, "GGUF tokenizer 'none'"),
        ({"tokenizer.ggml.model": "gpt2"}, "gpt2 without tokenizer.ggml.tokens and tokenizer.ggml.merges"),
    ):
        path = write_gguf(folder, "llama", tmp_path / "model.gguf", entries)
        with pytest.raises(UnsupportedModel, match=message):
            load_base(ModelSettings(name=str(path), cache=tmp_path / "cache"))


def test_a_rotation_of_a_part_of_each_head_is_refused(tmp_path):
    folder = make_tiny(tmp_path / "model", vocab_size=500)
    _, entries = tokenizer_entries("llama-bpe", 500)
    path = write_gguf(folder, "llama", tmp_path / "m.gguf", entries, lambda writer: writer.add_rope_dimension_count(8))
    with pytest.raises(UnsupportedModel, match=r"rope\.dimension_count 8"):
        load_base(ModelSettings(name=str(path), cache=tmp_path / "cache"))


def test_factors_beside_another_scaling_are_refused(tmp_path):
    folder = make_tiny(tmp_path / "model", vocab_size=500)
    _, entries = tokenizer_entries("llama-bpe", 500)
    entries |= {"llama.rope.scaling.type": "yarn"}
    path = write_gguf(
        folder,
        "llama",
        tmp_path / "m.gguf",
        entries,
        lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32)),
    )
    assert "rope_freqs.weight" in {tensor.name for tensor in GGUFReader(path).tensors}
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight with rope scaling 'yarn'"):
        load_base(ModelSettings(name=str(path), cache=tmp_path / "cache"))


@pytest.mark.parametrize("option", ["attn_factor", "yarn_attn_factor", "yarn_log_multiplier", "yarn_ext_factor"])
def test_options_of_yarn_that_are_not_read_are_refused(tmp_path, option):
    folder = make_tiny(tmp_path / "model", vocab_size=500)
    _, entries = tokenizer_entries("llama-bpe", 500)
    key = f"llama.rope.scaling.{option}"

    def add(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "yarn")
        writer.add_float32("llama.rope.scaling.factor", 4.0)
        writer.add_float32(key, 0.5)

    path = write_gguf(folder, "llama", tmp_path / "m.gguf", entries, add)
    with pytest.raises(UnsupportedModel, match=rf"rope\.scaling\.{option} 0\.5"):
        load_base(ModelSettings(name=str(path), cache=tmp_path / "cache"))


def test_betas_of_yarn_are_read(tmp_path):
    folder = make_tiny(tmp_path / "model", vocab_size=500)
    _, entries = tokenizer_entries("llama-bpe", 500)

    def add(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "yarn")
        writer.add_float32("llama.rope.scaling.factor", 4.0)
        writer.add_float32("llama.rope.scaling.yarn_beta_fast", 16.0)
        writer.add_float32("llama.rope.scaling.yarn_ext_factor", 1.0)

    path = write_gguf(folder, "llama", tmp_path / "m.gguf", entries, add)
    scaling = open_model(ModelSettings(name=str(path), cache=tmp_path / "cache")).config.rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.beta_fast, scaling.beta_slow) == ("yarn", 16.0, 1.0)


def test_a_kind_of_numbers_that_cannot_be_read_is_told_before_weights_are(tmp_path):
    folder = make_tiny(tmp_path / "model", vocab_size=500)
    _, entries = tokenizer_entries("llama-bpe", 500)
    data = np.zeros((4, GGML_QUANT_SIZES[GGMLQuantizationType.Q8_K][1]), np.uint8)

    def add(writer: GGUFWriter) -> None:
        writer.add_tensor("blk.9.odd.weight", data, raw_dtype=GGMLQuantizationType.Q8_K)

    path = write_gguf(folder, "llama", tmp_path / "m.gguf", entries, add)
    with pytest.raises(WeightsError, match=r"m\.gguf holds Q8_K numbers.*blk\.9\.odd\.weight.*safetensors"):
        open_model(ModelSettings(name=str(path), cache=tmp_path / "cache"))


def test_factors_are_no_parameter(tmp_path):
    folder = make_tiny(tmp_path / "model", vocab_size=500)
    _, entries = tokenizer_entries("llama-bpe", 500)
    factors = np.array([1, 1, 1, 2, 4, 8, 8, 8], np.float32)
    path = write_gguf(
        folder, "llama", tmp_path / "m.gguf", entries, lambda writer: writer.add_tensor("rope_freqs.weight", factors)
    )
    file = GGUFFile(path)
    assert file.rope_factors == tuple(factors.tolist())
    assert "rope_freqs.weight" not in file.names
    config = ModelConfig.from_gguf(file.metadata, file.names, file.rope_factors)
    plain = ModelConfig.from_gguf(file.metadata, file.names)
    np.testing.assert_allclose(rope_frequencies(config)[0] * factors, rope_frequencies(plain)[0])
