"""Tokenizers of GGUF files: byte-level BPE, split into words and typed token by token as llama.cpp reads them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from txlab.models.config import UnsupportedModel

_log = logging.getLogger(__name__)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
)
_SEED = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
)


@dataclass(frozen=True, slots=True)
class _Words:
    """How text is cut into the words inside which BPE merges, and what goes with it."""

    patterns: tuple[str, ...]  # each cuts further what the one before it left
    nfc: bool = False  # the models of this kind compose characters first
    ignore_merges: bool = False  # a word that is a token is taken whole
    add_bos: bool = False  # where the file does not say


# By ``tokenizer.ggml.pre``. The patterns are those that the models publish in their tokenizer.json.
_BY_DIGIT = _Words((r"\p{N}", _GPT2))
_OF_LLAMA3 = _Words((_LLAMA3,), ignore_merges=True, add_bos=True)
_OF_QWEN2 = _Words((_QWEN2,), nfc=True)
_WORDS = {
    "default": _Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _Words((_GPT2,)),
    "smollm": _BY_DIGIT,
    "starcoder": _BY_DIGIT,
    "refact": _BY_DIGIT,
    "minerva-7b": _BY_DIGIT,
    "llama-bpe": _OF_LLAMA3,
    "llama3": _OF_LLAMA3,
    "llama-v3": _OF_LLAMA3,
    "falcon3": _OF_LLAMA3,
    "smaug-bpe": _Words((_LLAMA3,)),
    "dbrx": _Words((_LLAMA3,)),
    "qwen2": _OF_QWEN2,
    "qwen35": _Words((_QWEN35,), nfc=True),
    "deepseek-r1-qwen": _Words((_QWEN2,)),
    "megrez": _Words((_QWEN2,)),
    "deepseek-coder": _Words((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    "seed-coder": _Words((_SEED,)),
    "tekken": _Words((_TEKKEN,), ignore_merges=True, add_bos=True),
}

# Tokens that end a turn are control tokens, even in files whose converter took them for something else.
_ENDS = frozenset(("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"))


class _Kind(IntEnum):
    """Kinds of tokens, numbered as in ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def build_gguf_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A byte-level BPE from GGUF metadata. Raises UnsupportedModel for other kinds."""
    _refuse_others(metadata)
    words = _words(metadata.get("tokenizer.ggml.pre"))
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    kinds = _kinds(tokens, metadata.get("tokenizer.ggml.token_type"))
    vocabulary = _vocabulary(tokens, kinds, merges)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=words.ignore_merges))
    if words.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(words.patterns)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_added(tokens, kinds))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **_named_tokens(metadata, tokens),
        **_ends_added(metadata, words),
    )


def _refuse_others(metadata: Mapping[str, Any]) -> None:
    kind = metadata.get("tokenizer.ggml.model", "none")
    lacks = [key for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges") if key not in metadata]
    if kind == "gpt2" and lacks:
        kind = f"gpt2 without {' and '.join(lacks)}"
    if kind != "gpt2":
        raise UnsupportedModel("GGUF tokenizer", kind, ("gpt2 (other kinds: the same model as a safetensors folder)",))


def _words(kind: str | None) -> _Words:
    if kind is not None and kind not in _WORDS:
        raise UnsupportedModel("GGUF pre-tokenizer", kind, tuple(_WORDS))
    if kind in (None, "default"):
        _log.warning(
            "The GGUF file does not say how its model cuts text into words (tokenizer.ggml.pre): llama.cpp's default "
            "is used, and texts may become other tokens than the model was trained on. Newer converters write it."
        )
    return _WORDS[kind or "default"]


def _pre_tokenizer(patterns: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _kinds(tokens: Sequence[str], types: Sequence[int] | None) -> list[int]:
    """Kind of each token; a file without types has normal ones only."""
    kinds = types if types is not None else [_Kind.NORMAL] * len(tokens)
    return [_Kind.CONTROL if token in _ENDS else kind for token, kind in zip(tokens, kinds, strict=True)]


def _vocabulary(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """Ids by token, without unused ones: they fill up the embedding, and no text becomes or is made from them."""
    made = {part for merge in merges for part in (*merge, "".join(merge))}
    return {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != _Kind.UNUSED or token in made or len(token) == 1
    }


def _added(tokens: Sequence[str], kinds: Sequence[int]) -> list[AddedToken]:
    """Tokens that are found in a text before it is cut; those of the user are text, and not special."""
    return [
        AddedToken(token, normalized=False, special=kind != _Kind.USER_DEFINED)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_Kind.CONTROL, _Kind.UNKNOWN, _Kind.USER_DEFINED)
    ]


def _named_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}


def _ends_added(metadata: Mapping[str, Any], words: _Words) -> dict[str, bool]:
    """Whether a text gets the tokens that begin and end one."""
    bos = metadata.get("tokenizer.ggml.add_bos_token", words.add_bos)
    eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    return {"add_bos_token": bool(bos), "add_eos_token": bool(eos)}
