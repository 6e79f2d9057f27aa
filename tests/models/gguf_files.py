"""Tiny GGUF files, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

from txlab.models.config import ModelConfig
from txlab.models.weights import GGUF_NAMES, HF_NAMES

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

AWKWARD = [
    "Hello, world! It's 9 o'clock; we'll see what they'RE doing, I'm sure. DON'T!",
    "12345678 1,234.56 3.14159 007 ²³ ½ Ⅷ ١٢٣ 2024-01-31",
    "  two leading,   three inside, trailing  ",
    "one\ntwo\n\nthree\n\n\n\tfour\r\nfive\r\n\r\n  six \n",
    "\t\ttabs\t and \u00a0no-break\u3000wide spaces",
    "日本語のテキスト、中文句子。한국어 문장",
    "emoji 😀😃 👩‍👩‍👧 🇩🇪 and accents: naïve café, cafe\u0301, Ελληνικά",
    "עברית שלום العربية مرحبا हिन्दी नमस्ते ไทย",
    "def f(x):\n    return x**2  # comment\n\nfor i in range(10): print(i)",
    "camelCaseWords HTMLParser ALLCAPS_snake_case",
    "<|im_start |> <b>&amp;</b> $100 + 50% = ^_^ ~| `code` \\n http://a.b/c?d=e#f",
    "",
    " ",
    "\n",
]


LLAMA3 = TikTokenConverter(vocab_file="unused").pattern
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _by_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), _BYTES])


# What the models themselves cut texts with, by the kind that GGUF files name.
OWN = {
    "gpt-2": _GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
    "llama-bpe": _by_pattern(LLAMA3),
    "smaug-bpe": _by_pattern(LLAMA3),
    "dbrx": _by_pattern(LLAMA3),
    "qwen2": Qwen2Tokenizer().backend_tokenizer.pre_tokenizer,
    "deepseek-r1-qwen": Qwen2Tokenizer().backend_tokenizer.pre_tokenizer,
    "qwen35": Qwen3_5Tokenizer().backend_tokenizer.pre_tokenizer,
}


def train(pre_tokenizer: pre_tokenizers.PreTokenizer, entries: int = 500) -> Tokenizer:
    """A byte-level BPE that has merges for the awkward texts, so that a wrong cut gives other tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=entries, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(AWKWARD * 2, trainer)
    return tokenizer


def metadata(tokenizer: Tokenizer, pre: str | None, added: Mapping[str, int] | None = None, **more: Any) -> dict:
    """The entries of a GGUF file for a BPE: its tokens, then ``added`` ones by their kind; ``more`` by short names."""
    model = json.loads(tokenizer.to_str())["model"]
    added = {} if added is None else dict(added)
    entries = {
        "model": "gpt2",
        "tokens": [*sorted(model["vocab"], key=model["vocab"].__getitem__), *added],
        "token_type": [NORMAL] * len(model["vocab"]) + list(added.values()),
        "merges": [" ".join(merge) for merge in model["merges"]],
    }
    entries |= ({} if pre is None else {"pre": pre}) | more
    return {f"tokenizer.ggml.{key}": value for key, value in entries.items()}


def write_gguf(
    folder: Path,
    family: str,
    path: Path,
    entries: Mapping[str, Any] | None = None,
    more: Callable[[GGUFWriter], None] = lambda writer: None,
) -> Path:
    """The model of a folder; for llama, with rotation pairs side by side. ``entries`` are those of its tokenizer."""
    config = ModelConfig.from_hf(json.loads((folder / "config.json").read_text()))
    tensors = load_file_all(folder)
    writer = GGUFWriter(path, family)
    writer.add_context_length(config.max_context)
    writer.add_block_count(config.num_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if entries is None:
        writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    else:
        _add_entries(writer, entries)
    for parameter, spelling in HF_NAMES.items():
        for layer in range(config.num_layers if "{}" in spelling else 1):
            if (array := tensors.get(spelling.format(layer))) is not None:
                heads = {"layers.q_proj": config.num_heads, "layers.k_proj": config.num_kv_heads}.get(parameter)
                if family == "llama" and heads:
                    array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
                writer.add_tensor(GGUF_NAMES[parameter].format(layer), np.ascontiguousarray(array))
    more(writer)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


def load_file_all(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder."""
    return {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}


def _add_entries(writer: GGUFWriter, entries: Mapping[str, Any]) -> None:
    for key, value in entries.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, Sequence):
            writer.add_array(key, value)
