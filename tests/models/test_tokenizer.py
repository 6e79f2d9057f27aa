"""Tokenizers: the packaged model's against transformers' own reading of the same file, and those of folders."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.models.gguf_files import AWKWARD, OWN, train
from tests.models.golden import make_golden as golden
from tests.models.tiny import ARCHITECTURES, make_tiny, make_tokenizer
from txlab.config import ModelSettings
from txlab.models.base import load_base, open_model
from txlab.models.files import ModelFileError
from txlab.models.tokenizer import TokenizerError, load_tokenizer
from txlab.models.weights import SafetensorsFolder


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


# ----------------------------------------------------------- folders: the file, not the class

AWKWARD_TEXTS = [*AWKWARD, "<|im_start|>user\n<think>a</think><|im_end|>"]


def byte_level() -> Tokenizer:
    tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def llama3_like() -> Tokenizer:
    tokenizer = train(OWN["llama-bpe"])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace() -> Tokenizer:
    """A BPE as of Llama 2: spaces are marks, and bytes stand for characters that it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(AWKWARD[:4], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:1]  # bytes are no special tokens
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, family: str, **config) -> Path:
    """A folder as hubs have them: the file, its configuration with a class, and the model's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "config.json").write_text(json.dumps({"model_type": family, "architectures": [ARCHITECTURES[family]]}))
    return folder


FILES = {"byte-level": byte_level, "llama 3": llama3_like, "metaspace": metaspace}
CLASSES = [
    "LlamaTokenizerFast",
    "LlamaTokenizer",
    "Qwen2TokenizerFast",
    "Qwen2Tokenizer",
    "GPT2TokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "NeverHeardOfTokenizer",
    None,
]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("named", CLASSES)
@pytest.mark.parametrize("file", FILES)
def test_the_file_counts_whatever_class_is_named(tmp_path, file, named, family):
    own = FILES[file]()
    folder = save(own, tmp_path / "model", family, **({} if named is None else {"tokenizer_class": named}))
    tokenizer, for_clients = load_tokenizer(folder, tmp_path / "cache")
    clients = AutoTokenizer.from_pretrained(for_clients, local_files_only=True)
    for one in (tokenizer, clients):
        assert (one.bos_token, one.eos_token) == ("<|im_start|>", "<|im_end|>")
        for text in AWKWARD_TEXTS:
            tokens = own.encode(text, add_special_tokens=False).ids
            assert one.encode(text, add_special_tokens=False) == tokens, text
            assert one.decode(tokens) == own.decode(tokens, skip_special_tokens=False), text


def test_a_folder_whose_class_reads_its_file_right_is_for_clients_as_well(tmp_path):
    folder = save(byte_level(), tmp_path / "model", "llama", tokenizer_class="PreTrainedTokenizerFast")
    assert load_tokenizer(folder, tmp_path / "cache")[1] == folder
    assert not (tmp_path / "cache").exists()


TEMPLATE = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"])
def test_what_goes_with_the_file_is_kept(tmp_path, caplog, monkeypatch, place):
    monkeypatch.setattr("txlab.models.tokenizer.reads_as", lambda *_: False)  # newer releases read this folder right
    own = byte_level()
    own.add_special_tokens(["<|im_start|>"])
    begin = ("<|im_start|>", own.token_to_id("<|im_start|>"))
    own.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[begin])
    folder = save(own, tmp_path / "model", "llama", tokenizer_class="LlamaTokenizerFast")
    if place != "tokenizer_config.json":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        config = json.loads((folder / place).read_text()) | {"chat_template": TEMPLATE, "pad_token": "<|im_end|>"}
        (folder / place).write_text(json.dumps(config))
    if place == "special_tokens_map.json":  # as transformers 4 writes it
        whole = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        (folder / place).write_text(json.dumps({"eos_token": {"content": "<|im_end|>"} | whole}))
    with caplog.at_level(logging.WARNING):
        _, for_clients = load_tokenizer(folder, tmp_path / "cache")
    assert for_clients.parent == tmp_path / "cache" / "tokenizers"
    assert "tokenizer.json is read as it stands" in caplog.text
    clients = AutoTokenizer.from_pretrained(for_clients, local_files_only=True)
    assert clients.eos_token == "<|im_end|>"
    chat = [{"role": "user", "content": "hi"}]
    assert clients.apply_chat_template(chat, tokenize=False) == "[hi]"
    assert clients.decode(clients.encode("a b")) == "<|im_start|>a b"
    assert clients.decode(clients.encode("<think>a<|im_end|>"), skip_special_tokens=True) == "<think>a"
    assert load_tokenizer(folder, tmp_path / "cache")[1] == for_clients  # written once


def test_code_that_comes_with_a_tokenizer_is_neither_run_nor_asked_for(tmp_path):
    own = byte_level()
    folder = save(
        own, tmp_path / "model", "llama", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]}
    )
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    tokenizer, for_clients = load_tokenizer(folder, tmp_path / "cache")
    assert tokenizer.encode("a b") == own.encode("a b").ids
    assert AutoTokenizer.from_pretrained(for_clients, local_files_only=True).encode("a b") == own.encode("a b").ids


# ------------------------------------------------------------------- missing and absurd ones


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"model has no tokenizer: add tokenizer\.json and tokenizer_config\.json"),
        (["tokenizer_config.json"], r"model has no tokenizer: add tokenizer\.json"),
        (["vocab.json"], r"vocab\.json needs merges\.txt"),
        (["merges.txt"], r"merges\.txt needs vocab\.json"),
        (["tokenizer.model"], r"tokenizer\.model alone needs the packages sentencepiece and protobuf"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_folder_without_a_tokenizer_is_refused_with_the_names_of_the_files(
    tmp_path, monkeypatch, files, message, family
):
    monkeypatch.setattr("txlab.models.tokenizer.find_spec", lambda name: None)
    folder = make_tiny(tmp_path / "model", family)
    for file in folder.glob("*token*"):
        file.unlink()
    for file in files:
        (folder / file).write_text("{}")
    monkeypatch.setattr(SafetensorsFolder, "read", lambda *args: pytest.fail("read a tensor"))
    with pytest.raises(TokenizerError, match=message):
        load_base(ModelSettings(name=str(folder), cache=tmp_path / "cache"))


def test_vocabulary_and_merges_will_do(tmp_path):
    own = byte_level()
    folder = save(own, tmp_path / "model", "qwen2", tokenizer_class="GPT2Tokenizer")
    own.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    tokenizer, for_clients = load_tokenizer(folder, tmp_path / "cache")
    assert for_clients == folder
    assert tokenizer.encode("Hello, world!", add_special_tokens=False) == own.encode("Hello, world!").ids


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, file):
    folder = make_tiny(tmp_path / "model")
    (folder / file).write_text('{"version": "1.0"')
    with pytest.raises(ModelFileError, match=rf"model/{file} is not valid JSON"):
        load_base(ModelSettings(name=str(folder)))


def test_a_tokenizer_that_is_json_and_nothing_else_is_named(tmp_path):
    folder = make_tiny(tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(TokenizerError, match=r"model/tokenizer\.json cannot be read"):
        load_base(ModelSettings(name=str(folder)))


def test_a_vocabulary_that_is_absurd_beside_the_models_is_refused(tmp_path):
    folder = make_tiny(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))).save_pretrained(
        folder
    )
    with pytest.raises(TokenizerError, match="has 2 entries beside the model's 320 embeddings"):
        load_base(ModelSettings(name=str(folder)))


def test_a_small_vocabulary_of_a_small_model_is_right(tmp_path):
    folder = make_tiny(tmp_path / "model", vocab_size=4)
    letters = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("ACGT")}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(folder)
    opened = open_model(ModelSettings(name=str(folder)))
    assert opened.tokenizer.encode("GATTACA") == [2, 0, 3, 3, 0, 1, 0]


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    folder = make_tiny(tmp_path / "model", vocab_size=300)
    make_tokenizer(320).save_pretrained(folder)
    with pytest.raises(TokenizerError, match=r"ids up to 319, but the model 300 embeddings.*of another model"):
        load_base(ModelSettings(name=str(folder)))


def test_added_tokens_beyond_the_embeddings_are_said(tmp_path, caplog):
    folder = make_tiny(tmp_path / "model")
    tokenizer = make_tokenizer(320)
    tokenizer.add_tokens(["<pad-of-mine>"])
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        open_model(ModelSettings(name=str(folder)))
    assert "tokens beyond the model's 320 embeddings: <pad-of-mine>" in caplog.text
