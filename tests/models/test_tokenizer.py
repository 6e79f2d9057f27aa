"""The tokenizer of the packaged model against transformers' own reading of the same file."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from tests.models.golden import make_golden as golden
from txlab.models.config import UnsupportedModel
from txlab.models.tokenizer import build_gguf_tokenizer


@pytest.fixture(scope="module")
def encodings() -> list[list[int]]:
    return json.loads((golden.HERE / "smollm2.json").read_text())["encodings"]


@pytest.mark.parametrize("index", range(len(golden.STRINGS)))
def test_encodings_are_those_of_transformers(smollm2, encodings, index):
    assert smollm2.tokenizer(golden.STRINGS[index])["input_ids"] == encodings[index]


@pytest.mark.parametrize("string", golden.STRINGS)
def test_decoding_gives_the_text_back(smollm2, string):
    assert smollm2.tokenizer.decode(smollm2.tokenizer(string)["input_ids"]) == string


def test_digits_are_split_one_by_one(smollm2):
    assert smollm2.tokenizer.tokenize("2024") == ["2", "0", "2", "4"]


def test_the_saved_folder_loads_by_itself(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(str(smollm2.tokenizer_dir), local_files_only=True)
    assert len(tokenizer) == smollm2.config.vocab_size
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    chat = tokenizer.apply_chat_template(golden.QUESTION, tokenize=False, add_generation_prompt=True)
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_other_kinds_are_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"GGUF tokenizer 'llama'.*gpt2"):
        build_gguf_tokenizer({"tokenizer.ggml.model": "llama"})
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.merges": []}
    with pytest.raises(UnsupportedModel, match=r"pre-tokenizer 'tekken'.*smollm"):
        build_gguf_tokenizer(metadata | {"tokenizer.ggml.pre": "tekken"})
