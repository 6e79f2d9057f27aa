"""Files of models and adapters, checked as they are opened: what is wrong with one is said by name, with the cure."""

from __future__ import annotations

import json
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from safetensors import SafetensorError, safe_open

LFS_POINTER = b"version https://git-lfs"
GGUF_MAGIC = b"GGUF"
TOKENIZER_FILES = ("tokenizer*", "*.jinja", "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json")
LARGE_JSON = ("tokenizer.json", "vocab.json")  # megabytes, which only an error makes worth reading twice
FLOATS = ("float32", "bfloat16", "float16", "float64")  # what weights may be stored as
AGAIN = "it was cut short or damaged: fetch it again"


class ModelFileError(ValueError):
    """A file of a model or an adapter that cannot be used; the message names it and says what to do."""


def check_file(path: Path) -> None:
    """Raise ModelFileError where ``path`` cannot be read, is empty, or is what Git LFS leaves in place of a file."""
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_POINTER))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    if not head:
        raise ModelFileError(f"{path} is empty; {AGAIN}")
    if head == LFS_POINTER:
        raise ModelFileError(
            f"{path} is a Git LFS pointer in place of the file: run `git lfs install && git lfs pull` in its folder, "
            "or fetch the model with `hf download`"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises ModelFileError."""
    check_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ModelFileError(f"{path} is not valid JSON ({error}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a JSON {type(value).__name__}, expected an object; {AGAIN}")
    return value


def open_safetensors(path: Path) -> Any:
    """A handle whose ``get_tensor`` reads one tensor as a NumPy array; its length is checked. Raises ModelFileError."""
    check_file(path)
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is damaged ({error}); {AGAIN}") from None


def open_gguf(path: Path) -> GGUFReader:
    """The metadata and the tensors, not yet read, of a GGUF file. Raises ModelFileError."""
    check_file(path)
    with path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise ModelFileError(f"{path} is no GGUF file: it begins with {magic!r}; {AGAIN}")
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader trusts what it reads: a cut fails wherever it happens to be
        raise ModelFileError(f"{path} is damaged ({type(error).__name__}: {error}); {AGAIN}") from None


def check_tokenizer_files(folder: Path, *, deep: bool = False) -> None:
    """Raise ModelFileError for a damaged file of the tokenizer in ``folder``; ``deep``: read the large ones too."""
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in TOKENIZER_FILES) and not path.is_dir():
            if path.suffix == ".json" and (deep or path.name not in LARGE_JSON):
                read_json(path)
            else:
                check_file(path)


def why_no_model(place: str, names: Collection[str]) -> str | None:
    """Say what ``place`` is, by the names of its files, where it is no folder of a model; None where it may be one."""
    if "config.json" in names:
        return None
    if "adapter_config.json" in names:
        return (
            f"{place} is a PEFT adapter, not a model: serve its base model, and take it in with "
            "lab.import_peft(folder, name)"
        )
    if files := sorted(name for name in names if name.endswith(".gguf")):
        return f"{place} has no config.json, but GGUF files ({some(files)}): pass the path of one"
    if not names:
        return f"{place} has no config.json: it is empty"
    return f"{place} has no config.json (it has {some(names)})"


def why_no_weights(names: Collection[str]) -> str | None:
    """Say how weights of another format than safetensors, among ``names``, can be converted; None: there are none."""
    pickled = sorted(name for name in names if name.endswith((".bin", ".pth", ".pt", ".bin.index.json")))
    if not pickled or any(name.endswith(".safetensors") for name in names):
        return None
    return (
        f"it has {some(pickled)}, which PyTorch alone reads; convert it once: "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder) of transformers writes safetensors"
    )


def some(names: Collection[str], most: int = 4) -> str:
    """The first of ``names`` in order, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more
