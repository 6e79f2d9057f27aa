"""Loading a base model whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.tiny import make_tiny, make_tokenizer
from txlab.config import DEFAULT_MODEL, ModelSettings
from txlab.models.base import load_base, load_opened, open_model
from txlab.models.config import UnsupportedModel
from txlab.models.weights import SafetensorsFolder


def test_a_folder(tiny_llama):
    base = load_base(ModelSettings(name=str(tiny_llama)))
    assert base.name == str(tiny_llama)
    assert base.tokenizer_dir == tiny_llama
    assert base.eos_ids == (2,)
    assert base.memory_bytes == 4 * base.parameter_count
    assert base.parameter_count == 320 * 64 + 64 + 2 * (2 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert base.config.max_context == 512


def test_max_context_shortens_but_does_not_stretch(tiny_llama):
    assert load_base(ModelSettings(name=str(tiny_llama), max_context=100)).config.max_context == 100
    assert load_base(ModelSettings(name=str(tiny_llama), max_context=10_000)).config.max_context == 512


def test_every_eos_is_known(tmp_path):
    folder = make_tiny(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert load_base(ModelSettings(name=str(folder))).eos_ids == (7, 2)


def test_an_end_token_that_the_model_has_no_row_for_is_left_out(tmp_path, caplog):
    folder = make_tiny(tmp_path / "model", vocab_size=300)
    tokenizer = make_tokenizer(300)
    tokenizer.add_special_tokens({"eos_token": "<|beyond|>"})
    tokenizer.save_pretrained(folder)
    assert load_base(ModelSettings(name=str(folder))).eos_ids == (2,)
    assert "the tokenizer's eos token: left out 300: tokens of this model are 0 … 299" in caplog.messages


def test_an_unsupported_architecture_is_refused_before_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))
    with pytest.raises(UnsupportedModel, match="MambaForCausalLM"):
        load_base(ModelSettings(name=str(tmp_path)))


def test_smollm2(smollm2):
    assert smollm2.name == DEFAULT_MODEL
    assert smollm2.parameter_count == 134_515_008
    assert smollm2.config.max_context == 8192
    assert smollm2.eos_ids == (2,)
    assert isinstance(smollm2.tokenizer_dir, Path)


def test_a_model_is_opened_without_its_weights_being_read(tiny_llama, monkeypatch):
    settings = ModelSettings(name=str(tiny_llama), max_context=100)
    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsFolder, "read", lambda *args: pytest.fail("read a tensor"))
        opened = open_model(settings)
    assert (opened.config.max_context, opened.tokenizer_dir) == (100, tiny_llama)
    assert opened.tokenizer.decode(opened.tokenizer.encode("a word")) == "a word"
    assert load_opened(opened).parameter_count == load_base(settings).parameter_count
