"""Tokenizers, each beside a folder from which ``AutoTokenizer.from_pretrained`` loads the same one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from txlab.models.files import ModelFileError, read_json
from txlab.models.gguf_tokenizer import build_gguf_tokenizer

_log = logging.getLogger(__name__)
_load = AutoTokenizer.from_pretrained  # as it stands now: a lab that serves makes it answer its model's name

# Texts that tokenizers tell apart: numbers, contractions, spaces, lines, scripts, composed characters.
_PROBES = (
    "Hello, world! It's 9 o'clock; we'll see what they'RE doing.",
    "12345678 1,234.56 007 ²³ Ⅷ",
    "  two leading,   three inside, trailing  ",
    "one\ntwo\n\n\tthree\r\n  four\n",
    "日本語、中文。한국어 עברית العربية हिन्दी 😀👩‍👧 café cafe\u0301",
    "def f(x_1):\n    return x**2  # camelCase <b>&amp;</b>",
)
_PLAIN = "The quick brown fox jumps over the lazy dog."


class TokenizerError(ModelFileError):
    """A model's tokenizer is missing, unreadable or not its own; the message names the folder and what would do."""


def load_tokenizer(folder: Path, cache: Path) -> tuple[PreTrainedTokenizerBase, Path]:
    """The tokenizer of a Hugging Face folder, and the folder from which clients load it; needs no network.

    ``tokenizer.json`` is what counts: where the class that the folder names reads it otherwise than it says, as of
    many distilled models, it is loaded as the generic class, and saved so below ``cache``. Raises TokenizerError.
    """
    if problem := missing_tokenizer(file_names(folder)):
        raise TokenizerError(f"{folder} has no tokenizer: {problem}")
    file = folder / "tokenizer.json"
    own = _read(file) if file.exists() else None
    try:
        named = _load(folder, local_files_only=True, trust_remote_code=False)
        if own is None or reads_as(named, own):
            return named, folder
    except Exception as error:  # whatever the code of some class finds wrong with these files
        if own is None:
            raise _unloadable(folder, error) from None
    try:
        generic = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise _unloadable(folder, error) from None
    saved = save_tokenizer(generic, cache, folder.name)
    _log.warning(
        "%s is read as it stands: the class that its folder names would make other tokens or texts. "
        "Clients load the tokenizer from %s.",
        file,
        saved,
    )
    return _load(saved, local_files_only=True), saved


def file_names(folder: Path) -> set[str]:
    """Files of a folder, without links to what is not there."""
    return {path.name for path in folder.iterdir() if path.exists()}


def missing_tokenizer(names: Collection[str]) -> str:
    """Name what a Hugging Face folder lacks for a tokenizer; empty where nothing is missing."""
    if "tokenizer.json" in names:
        return ""
    vocabulary = [name for name in ("vocab.json", "merges.txt") if name in names]
    if len(vocabulary) == 2:
        return ""
    if "tokenizer.model" in names:
        if find_spec("sentencepiece"):
            return ""
        return (
            "tokenizer.model alone needs the packages sentencepiece and protobuf: install them, or add the "
            "tokenizer.json that AutoTokenizer.from_pretrained(...).save_pretrained(...) writes where they are"
        )
    if vocabulary:
        return f"{vocabulary[0]} needs {({'vocab.json', 'merges.txt'} - set(vocabulary)).pop()} beside it"
    return "add tokenizer.json and tokenizer_config.json (or vocab.json and merges.txt, or tokenizer.model)"


def reads_as(tokenizer: PreTrainedTokenizerBase, own: Tokenizer) -> bool:
    """Whether texts become the same tokens as by ``own``, and these the texts again wherever they do by ``own``."""
    for text in _PROBES:
        expected = own.encode(text, add_special_tokens=False).ids
        if tokenizer.encode(text, add_special_tokens=False) != expected:
            return False
        told = own.decode(expected, skip_special_tokens=False)
        if told == text and tokenizer.decode(expected, clean_up_tokenization_spaces=False) != text:
            return False
    return True


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, folder: Path) -> None:
    """Raise TokenizerError for a tokenizer that cannot be that of a model with ``vocab_size`` embeddings."""
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    beyond = {token: i for token, i in vocabulary.items() if i >= vocab_size}
    if beyond.keys() - added.keys():
        raise TokenizerError(
            f"the tokenizer of {folder} has ids up to {max(beyond.values())}, but the model {vocab_size} embeddings: "
            "is it the tokenizer of another model?"
        )
    if beyond:
        shown = ", ".join(sorted(beyond)[:5])
        _log.warning("The tokenizer of %s has tokens beyond the model's %d embeddings: %s", folder, vocab_size, shown)
    tokens = tokenizer.encode(_PLAIN, add_special_tokens=False)
    spelled = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() == _PLAIN
    if len(vocabulary) * 8 < vocab_size and not spelled:
        raise TokenizerError(
            f"the tokenizer of {folder} has {len(vocabulary)} entries beside the model's {vocab_size} embeddings, and "
            "cannot spell an English sentence: are its files complete?"
        )


def save_gguf_tokenizer(metadata: Mapping[str, Any], cache: Path) -> Path:
    """Folder below ``cache`` with the tokenizer of a GGUF file. Raises UnsupportedModel for kinds that are not read."""
    return save_tokenizer(build_gguf_tokenizer(metadata), cache, metadata.get("general.basename", "gguf"))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, cache: Path, name: str) -> Path:
    """Folder below ``cache`` that ``AutoTokenizer.from_pretrained`` loads; written once for each tokenizer."""
    content = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map]
    digest = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:12]
    folder = cache / "tokenizers" / f"{re.sub('[^A-Za-z0-9._-]+', '-', name)}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "tokenizer"
            tokenizer.save_pretrained(made)
            _name_generic_class(made / "tokenizer_config.json")
            _move(made, folder)
    return folder


def _name_generic_class(file: Path) -> None:
    """Write the name of the generic class that transformers 4 knows as well."""
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2))


def _unloadable(folder: Path, error: Exception) -> TokenizerError:
    return TokenizerError(f"the tokenizer of {folder} cannot be loaded ({type(error).__name__}: {error})")


def _read(file: Path) -> Tokenizer:
    try:
        own = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more special
        read_json(file)  # says better what is wrong with a file that was cut short
        raise TokenizerError(f"{file} cannot be read: {error}") from None
    own.no_truncation()
    own.no_padding()
    return own


def _move(made: Path, folder: Path) -> None:
    """Rename into place; where another process was first, its folder is as good."""
    try:
        os.replace(made, folder)
    except OSError:
        if not folder.exists():
            raise
