"""Tiny random models in the Hugging Face folder format, made without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = """The quick brown fox jumps over the lazy dog. Pig Latin: ananabay itsplay, ewspapernay, otalay estday.
English: banana split, newspaper, total rest, quantum physics. The capital of France is Paris, and this is the end."""


def make_tiny(folder: Path, family: str = "llama", *, seed: int = 0, shards: int = 1, **overrides: Any) -> Path:
    """Write a small random model of ``family`` (llama, qwen2, qwen3) and its tokenizer; return ``folder``.

    ``overrides`` replace entries of config.json: ``hidden_size=32``, ``tie_word_embeddings=False``,
    ``rope_parameters={...}``; None leaves the entry out. The same arguments give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in (_config(family) | overrides).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _save_weights(folder, dict(_tensors(config, np.random.default_rng(seed))), shards)
    make_tokenizer(config["vocab_size"]).save_pretrained(folder)
    return folder


def make_tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most ``vocab_size`` tokens with ChatML special tokens; eos is ``<|im_end|>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[1],
        eos_token=SPECIAL_TOKENS[2],
        pad_token=SPECIAL_TOKENS[0],
        chat_template=CHAT_TEMPLATE,
    )


def _config(family: str) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _tensors(config: dict[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by their Hugging Face names; matrices are (out, in)."""

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)

    def norm(size: int) -> np.ndarray:
        return (1.0 + 0.1 * rng.normal(size=size)).astype(np.float32)

    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    family = config["model_type"]
    yield "model.embed_tokens.weight", rng.normal(size=(config["vocab_size"], hidden)).astype(np.float32)
    yield "model.norm.weight", norm(hidden)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", matrix(config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", norm(hidden)
        yield f"{layer}.post_attention_layernorm.weight", norm(hidden)
        for name, size in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{layer}.self_attn.{name}_proj.weight", matrix(size, hidden)
            if family == "qwen2" or config.get("attention_bias"):
                yield f"{layer}.self_attn.{name}_proj.bias", 0.1 * rng.normal(size=size).astype(np.float32)
        yield f"{layer}.self_attn.o_proj.weight", matrix(hidden, queries)
        if family != "qwen2" and config.get("attention_bias"):
            yield f"{layer}.self_attn.o_proj.bias", 0.1 * rng.normal(size=hidden).astype(np.float32)
        if family == "qwen3":
            yield f"{layer}.self_attn.q_norm.weight", norm(head)
            yield f"{layer}.self_attn.k_norm.weight", norm(head)
        yield f"{layer}.mlp.gate_proj.weight", matrix(inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", matrix(inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", matrix(hidden, inner)


def _save_weights(folder: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
