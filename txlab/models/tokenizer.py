"""Tokenizers: from a folder, or built from GGUF metadata and saved as a folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from txlab.models.config import UnsupportedModel

_CONTROL = 3  # GGUF's token type of special tokens


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder, without network."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def save_gguf_tokenizer(metadata: Mapping[str, Any], cache: Path) -> Path:
    """Folder below ``cache`` that ``AutoTokenizer.from_pretrained`` loads; written once for each tokenizer.

    Raises UnsupportedModel for tokenizers other than GPT-2 style BPE.
    """
    tokenizer = build_gguf_tokenizer(metadata)
    content = f"{tokenizer.backend_tokenizer.to_str()}{tokenizer.chat_template}"
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    folder = cache / "tokenizers" / f"{metadata.get('general.basename', 'gguf')}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "tokenizer"
            tokenizer.save_pretrained(made)
            _move(made, folder)
    return folder


def build_gguf_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A byte-level BPE from GGUF metadata. Raises UnsupportedModel for other kinds."""
    if metadata["tokenizer.ggml.model"] != "gpt2":
        raise UnsupportedModel("GGUF tokenizer", metadata["tokenizer.ggml.model"], ("gpt2",))
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(metadata.get("tokenizer.ggml.pre", "default"))
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **_named_tokens(metadata, tokens),
    )


def _pre_tokenizer(kind: str) -> Any:
    """Split into words as llama.cpp's pre-tokenizer ``kind`` says."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match kind:
        case "default" | "gpt-2":
            return words
        case "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    raise UnsupportedModel("GGUF pre-tokenizer", kind, ("default", "gpt-2", "smollm"))


def _named_tokens(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None}


def _move(made: Path, folder: Path) -> None:
    """Rename into place; where another process was first, its folder is as good."""
    try:
        os.replace(made, folder)
    except OSError:
        if not folder.exists():
            raise
