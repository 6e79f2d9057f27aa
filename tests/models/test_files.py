"""Files that are damaged, of another kind or not there: one message each, which names the file and the cure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from gguf import GGUFWriter

from tests.models import gguf_files
from tests.models.gguf_files import write_gguf
from tests.models.tiny import make_tiny, make_tokenizer
from txlab.config import ModelSettings, Settings
from txlab.engine.compiles import use_compile_cache
from txlab.notebook.errors import TxlabError
from txlab.notebook.preparation import load_model

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with every kind of file."""
    folder = make_tiny(tmp_path_factory.mktemp("files") / "whole", shards=2)
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    for name in ("special_tokens_map.json", "added_tokens.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path, whole) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(autouse=True)
def no_weights_are_read(monkeypatch):
    """All of this is told before gigabytes are."""
    monkeypatch.setattr("txlab.models.base.load_parameters", lambda *_: pytest.fail("weights were read"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def told(model: Path | str, tmp_path: Path) -> str:
    """What the user sees: one line."""
    settings = Settings(model=ModelSettings(name=str(model), cache=tmp_path / "cache"))
    with pytest.raises(TxlabError) as error:
        load_model(settings)
    message = str(error.value)
    assert "\n" not in message, message
    return message


@pytest.mark.parametrize("name", [*JSON_FILES, "chat_template.jinja", SHARD])
def test_a_git_lfs_pointer(tmp_path, folder, name):
    (folder / name).write_text(LFS)
    assert f"{folder / name} is a Git LFS pointer" in (message := told(folder, tmp_path))
    assert "git lfs pull" in message


@pytest.mark.parametrize("name", [*JSON_FILES, SHARD])
@pytest.mark.parametrize("part", [0, 0.6], ids=["empty", "cut"])
def test_a_file_that_was_cut_short(tmp_path, folder, name, part):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(part * len(data))])
    assert str(folder / name) in (message := told(folder, tmp_path))
    assert "fetch it again" in message


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("text", ["[]", '"{}"', "\ufeff{}"], ids=["list", "string", "marked"])
def test_json_of_another_kind(tmp_path, folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    assert str(folder / name) in told(folder, tmp_path)


def test_bytes_that_are_no_text(tmp_path, folder):
    (folder / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    assert f"{folder / 'config.json'} is not valid JSON" in told(folder, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SHARD])
def test_a_folder_in_place_of_a_file(tmp_path, folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert name in told(folder, tmp_path)


def test_a_tokenizer_that_the_library_does_not_take(tmp_path, folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    assert f"{folder / 'tokenizer.json'} cannot be read" in told(folder, tmp_path)


def test_a_sentencepiece_model_alone_says_what_is_needed(tmp_path, folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    message = told(folder, tmp_path)
    assert "tokenizer.model" in message
    assert "tokenizer.json" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize("part", [0, 2, 10, 300, 0.3, 0.7, -1])
def test_a_gguf_file_that_was_cut_short(tmp_path, part):
    file = write_gguf(make_tiny(tmp_path / "model"), "llama", tmp_path / "model.gguf")
    data = file.read_bytes()
    file.write_bytes(data[: part if isinstance(part, int) else int(part * len(data))])
    assert str(file) in (message := told(file, tmp_path))
    assert "fetch it again" in message


def test_a_gguf_file_that_is_none(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_text(LFS)
    assert "is a Git LFS pointer" in told(file, tmp_path)
    file.write_bytes(b"PK\x03\x04" * 100)
    assert f"{file} is no GGUF file" in told(file, tmp_path)


def test_a_gguf_file_without_what_a_model_needs(tmp_path):
    writer = GGUFWriter(tmp_path / "vision.gguf", "llama")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    assert "vision.gguf" in (message := told(tmp_path / "vision.gguf", tmp_path))
    assert "lacks" in message


# --------------------------------------------------------------------------------- what a path may lead to


def empty(folder: Path) -> None:
    folder.mkdir()


def adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    (folder / "adapter_model.safetensors").touch()


def gguf_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "tiny.Q4_0.gguf").touch()


def pickled(folder: Path) -> None:
    make_tiny(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def text_file(folder: Path) -> None:
    folder.write_text("model")


def weights_file(folder: Path) -> None:
    folder.write_text("model")


PLACES: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {
    "empty folder": ("model", empty, ("it is empty",)),
    "adapter": ("model", adapter, ("is a PEFT adapter", "lab.import_peft")),
    "folder of GGUF files": ("model", gguf_folder, ("tiny.Q4_0.gguf",)),
    "PyTorch weights": ("model", pickled, ("pytorch_model.bin", "save_pretrained")),
    "folder named .gguf": ("model.gguf", empty, ("it is empty",)),
    "another file": ("model.txt", text_file, ("is a file", "folder")),
    "a safetensors file": ("model.safetensors", weights_file, ("is a file", "folder")),
    "nothing": ("nowhere", lambda folder: None, ("no such",)),
}


@pytest.mark.parametrize(("name", "make", "parts"), PLACES.values(), ids=PLACES)
def test_a_path_that_is_no_model(tmp_path, name, make, parts):
    make(tmp_path / name)
    message = told(tmp_path / name, tmp_path)
    for part in (str(tmp_path / name), *parts):
        assert part in message


def test_a_home_folder(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/nowhere" in told("~/nowhere", tmp_path)
    assert "~no-such-user" in told("~no-such-user/model", tmp_path)


def test_what_may_not_be_read(tmp_path, folder, monkeypatch):
    """Permissions do not bind a superuser: the system's answer is given in its stead."""
    opened = Path.open

    def refuse(path: Path, *arguments, **options):
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert f"{folder / 'config.json'} cannot be read: Permission denied" in told(folder, tmp_path)


def test_a_missing_index_entry(tmp_path, folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    assert "has no weight_map" in told(folder, tmp_path)


# ------------------------------------------------------------------------------------ folders and devices


def test_an_unwritable_cache_is_done_without(tmp_path, monkeypatch, caplog):
    """The tokenizer of a GGUF file goes where this process may write; the model is served all the same."""
    monkeypatch.undo()  # weights are read here
    tokenizer = make_tokenizer()
    entries = gguf_files.metadata(tokenizer.backend_tokenizer, "gpt-2")
    file = write_gguf(make_tiny(tmp_path / "model"), "llama", tmp_path / "model.gguf", entries)
    (tmp_path / "cache").write_text("a file")
    base = load_model(Settings(model=ModelSettings(name=str(file), cache=tmp_path / "cache")))
    assert (base.tokenizer_dir / "tokenizer.json").is_file()
    lines = [record.getMessage() for record in caplog.records if "TXLAB_CACHE" in record.getMessage()]
    assert len(lines) == 1
    assert str(tmp_path / "cache") in lines[0]


def test_an_unwritable_compile_cache_is_done_without(tmp_path, caplog):
    (tmp_path / "file").touch()
    before = jax.config.jax_compilation_cache_dir
    use_compile_cache(tmp_path / "file" / "xla")
    assert jax.config.jax_compilation_cache_dir == before
    assert [record.getMessage() for record in caplog.records] == [
        f"Compiled programs are not kept: {tmp_path / 'file' / 'xla'} cannot be written (Not a directory). "
        "TXLAB_CACHE names another."
    ]
