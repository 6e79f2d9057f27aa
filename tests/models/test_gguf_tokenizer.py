"""Tokenizers of GGUF files: the words of each kind beside the models' own, and the kinds of tokens."""

from __future__ import annotations

import json
import logging

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from tests.models.gguf_files import (
    AWKWARD,
    BYTE,
    CONTROL,
    NORMAL,
    OWN,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    metadata,
    train,
)
from txlab.models.config import UnsupportedModel
from txlab.models.gguf_tokenizer import build_gguf_tokenizer
from txlab.models.tokenizer import save_gguf_tokenizer

_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = OWN["gpt-2"]


@pytest.mark.parametrize("kind", OWN)
def test_texts_become_the_tokens_that_the_models_own_pre_tokenizer_gives(kind):
    own = train(OWN[kind])
    own.decoder = decoders.ByteLevel()
    if kind in ("qwen2", "qwen35"):
        own.normalizer = normalizers.NFC()
    tokenizer = build_gguf_tokenizer(metadata(own, kind))
    for text in AWKWARD:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert tokens == own.encode(text).ids, text
        assert tokenizer.decode(tokens) == own.decode(own.encode(text).ids)


def test_the_kinds_cut_texts_apart():
    """Otherwise the comparison above would show nothing."""
    cut = {kind: [own.pre_tokenize_str(text) for text in AWKWARD] for kind, own in OWN.items()}
    for kinds in (("gpt-2", "smollm"), ("llama-bpe", "qwen2"), ("qwen2", "qwen35"), ("smollm", "qwen2")):
        assert cut[kinds[0]] != cut[kinds[1]], kinds


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("default", ["f", "(", "123", "45", "),", "Ġyes"]),  # llama.cpp's own, where the file names none
        ("deepseek-coder", ["f", "(", "1", "2", "3", "4", "5", "),", "Ġyes"]),
        ("seed-coder", ["f", "(", "1", "2", "3", "4", "5", "),", "Ġyes"]),
        ("tekken", ["f", "(", "1", "2", "3", "4", "5", "),", "Ġyes"]),
        ("starcoder", ["f", "(", "1", "2", "3", "4", "5", "),", "Ġyes"]),
        ("falcon3", ["f", "(", "123", "45", "),", "Ġyes"]),
    ],
)
def test_further_kinds(kind, words):
    tokenizer = build_gguf_tokenizer(metadata(train(_GPT2), kind))
    assert [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("f(12345), yes")] == words
    for text in AWKWARD:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_tekken_cuts_where_capitals_begin():
    tokenizer = build_gguf_tokenizer(metadata(train(_GPT2), "tekken"))
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("camelCaseWords")
    assert [word for word, _ in words] == ["camel", "Case", "Words"]


def test_a_file_that_names_no_pre_tokenizer_is_read_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        build_gguf_tokenizer(metadata(train(_GPT2), None))
    assert "does not say how its model cuts text into words" in caplog.text


def test_other_kinds_are_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"GGUF tokenizer 'llama'.*gpt2"):
        build_gguf_tokenizer({"tokenizer.ggml.model": "llama"})
    with pytest.raises(UnsupportedModel, match=r"GGUF pre-tokenizer 'viking'.*smollm.*qwen2"):
        build_gguf_tokenizer(metadata(train(_GPT2), "viking"))
    without = metadata(train(_GPT2), "gpt-2")
    del without["tokenizer.ggml.merges"]
    with pytest.raises(UnsupportedModel, match=r"GGUF tokenizer 'gpt2 without tokenizer\.ggml\.merges'"):
        build_gguf_tokenizer(without)


# ---------------------------------------------------------------------------- kinds of tokens

ADDED = {
    "<unk>": UNKNOWN,
    "<|begin|>": CONTROL,
    "<|end|>": USER_DEFINED,  # a converter's slip: it ends turns
    "<think>": USER_DEFINED,
    "[PAD0]": UNUSED,
    "[PAD1]": UNUSED,
    "<0x41>": BYTE,
}


@pytest.fixture(scope="module")
def typed():
    base = train(_GPT2)
    size = base.get_vocab_size()
    named = {"bos_token_id": size + 1, "eos_token_id": size + 2}
    return build_gguf_tokenizer(metadata(base, "gpt-2", ADDED, **named)), size


def test_control_and_user_defined_tokens_are_found_whole_in_a_text(typed):
    tokenizer, size = typed
    for index, (token, kind) in enumerate(ADDED.items()):
        found = tokenizer.encode(f"a{token}b", add_special_tokens=False)
        assert (size + index in found) == (kind in (UNKNOWN, CONTROL, USER_DEFINED)), token


def test_only_user_defined_tokens_are_text(typed):
    tokenizer, _ = typed
    tokens = tokenizer.encode("<|begin|>a<think>b<|end|>", add_special_tokens=False)
    assert tokenizer.decode(tokens) == "<|begin|>a<think>b<|end|>"
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "a<think>b"
    assert {token.content for token in tokenizer.added_tokens_decoder.values() if not token.special} == {"<think>"}


def test_unused_tokens_keep_the_ids_of_others_in_place_and_are_no_text(typed):
    tokenizer, size = typed
    unused = size + list(ADDED).index("[PAD0]")
    assert tokenizer.decode([unused, unused + 1]) == ""
    assert tokenizer.convert_tokens_to_ids("<0x41>") == size + list(ADDED).index("<0x41>")
    assert tokenizer.decode(tokenizer.encode("[PAD0]", add_special_tokens=False)) == "[PAD0]"


def test_tokens_of_a_file_without_kinds_are_normal():
    entries = metadata(train(_GPT2), "gpt-2", {"<|begin|>": NORMAL}, bos_token_id=500)
    del entries["tokenizer.ggml.token_type"]
    tokenizer = build_gguf_tokenizer(entries)
    assert tokenizer.bos_token == "<|begin|>"
    assert tokenizer.encode("<|begin|>", add_special_tokens=False) == [500]


@pytest.mark.parametrize(
    ("kind", "flags", "expected"),
    [
        ("llama-bpe", {}, ["<|begin|>", "hi"]),
        ("llama-bpe", {"add_bos_token": False}, ["hi"]),
        ("qwen2", {}, ["hi"]),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, ["<|begin|>", "hi", "<|end|>"]),
    ],
)
def test_the_ends_of_a_text_are_added_as_the_file_says(tmp_path, kind, flags, expected):
    base = train(_BYTES, 257)
    base.add_tokens([AddedToken("unused")])
    size = base.get_vocab_size(with_added_tokens=False)
    added = {"hi": USER_DEFINED, "<|begin|>": CONTROL, "<|end|>": CONTROL}
    entries = metadata(base, kind, added, bos_token_id=size + 1, eos_token_id=size + 2, **flags)
    for tokenizer in (
        build_gguf_tokenizer(entries),
        AutoTokenizer.from_pretrained(save_gguf_tokenizer(entries, tmp_path), local_files_only=True),
    ):
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode("hi")) == expected


def test_words_that_are_tokens_are_taken_whole_by_llama_3():
    entries = metadata(train(_BYTES, 257), "llama-bpe", {"zebra": NORMAL})
    (token,) = build_gguf_tokenizer(entries).encode("zebra", add_special_tokens=False)
    assert token == entries["tokenizer.ggml.tokens"].index("zebra")
    qwen = build_gguf_tokenizer(entries | {"tokenizer.ggml.pre": "qwen2"})
    assert len(qwen.encode("zebra", add_special_tokens=False)) == 5


def test_the_saved_folder_is_of_the_generic_class_and_needs_nothing_else(tmp_path):
    entries = metadata(train(OWN["qwen2"]), "qwen2", {"<think>": USER_DEFINED, "<|im_end|>": CONTROL})
    entries |= {"tokenizer.ggml.eos_token_id": len(entries["tokenizer.ggml.tokens"]) - 1, "general.basename": "a/b c"}
    folder = save_gguf_tokenizer(entries, tmp_path)
    assert folder.parent == tmp_path / "tokenizers"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # known to transformers 4 and 5
    loaded, built = AutoTokenizer.from_pretrained(folder, local_files_only=True), build_gguf_tokenizer(entries)
    assert loaded.eos_token == "<|im_end|>"
    for text in [*AWKWARD, "<think>a<|im_end|>"]:
        assert (
            loaded.encode(text)
            == built.encode(text)
            == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
        )
        assert loaded.decode(loaded.encode(text), skip_special_tokens=True) == built.decode(
            built.encode(text), skip_special_tokens=True
        )
