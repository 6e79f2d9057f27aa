"""Golden numbers of the base models, from transformers and torch.

Run ``python -m tests.models.golden.make_golden`` in the root of the repository; it writes tiny.npz and smollm2.json
next to this file. Tests recompute the same where torch is installed.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.tiny import make_tiny
from txlab.config import ModelSettings
from txlab.models.sources import resolve

HERE = Path(__file__).parent
KEPT = 4  # last positions whose logits are in tiny.npz
PROMPT = np.random.default_rng(7).integers(3, 320, (1, 48))  # (1, T)
GREEDY = 16  # tokens that follow the prompt

ROPE4 = {"rope_parameters": None, "rope_theta": 5000.0}  # as transformers 4 writes it
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama-untied": {"family": "llama", "tie_word_embeddings": False, "shards": 2},
    "llama-bias": {"family": "llama", "attention_bias": True},
    "llama-llama3": {"family": "llama", "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}},
    "llama-linear": {"family": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}} | ROPE4,
    "qwen2": {"family": "qwen2", "shards": 3},
    "qwen2-yarn": {"family": "qwen2", "tie_word_embeddings": False, "rope_parameters": YARN},
    "qwen3": {"family": "qwen3", "head_dim": 32},
    "qwen3-untied": {"family": "qwen3", "head_dim": 8, "tie_word_embeddings": False},
}

TEXT = (
    "The Nile is a major river in northeastern Africa. It flows north into the Mediterranean Sea and has long been "
    "considered the longest river in the world, with a length of about 6,650 kilometres. For thousands of years "
    "people have lived along its banks, because the yearly flood left rich soil on which wheat and barley grew well. "
    "In 1970 a high dam was finished near Aswan: since then the flood no longer comes, and the dam's turbines "
    "produce electricity for the whole country."
)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = "Once upon a time, a small robot"
STRINGS = [
    "Hello, world!",
    "  two leading spaces, trailing  ",
    "In 1984 there were 12345.678 birds; 3/4 of them flew 007 miles",
    "line one\nline two\n\n\tindented\r\nend",
    "emoji 😀👩‍👩‍👧 and accents: naïve café, Ελληνικά, 日本語, עברית",
    "don't we'll I'M it's",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "almost special: <|im_start |> <im_end|>",
    "def f(x):\n    return x**2  # comment\n",
    "",
]


def tiny_reference(folder: Path) -> tuple[np.ndarray, list[int]]:
    """Logits (1, T, V) float32 of PROMPT, and the greedy tokens after it, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return reference_logits(model, PROMPT), reference_greedy(model, PROMPT[0].tolist(), GREEDY)


def smollm2_reference() -> tuple[Any, Any]:
    """The packaged default model and its tokenizer, read and dequantized by transformers' own code."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve(ModelSettings().name, ModelSettings()).path
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def perplexity(logits: np.ndarray, tokens: list[int]) -> float:
    """The exponential of the mean negative log-likelihood of tokens[1:]; logits (1, T, V)."""
    rows = logits[0, :-1].astype(np.float64)
    log_z = np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1)) + rows.max(-1)
    return math.exp(np.mean(log_z - rows[np.arange(len(rows)), tokens[1:]]))


def reference_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """(B, T) -> (B, T, V) float32 by a model of transformers."""
    import torch

    with torch.inference_mode():
        return model(torch.as_tensor(tokens)).logits.float().numpy()


def reference_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """The tokens after ``prompt`` that a model of transformers generates."""
    import torch

    options = {"do_sample": False, "max_new_tokens": count, "pad_token_id": 0}
    return model.generate(torch.as_tensor([prompt]), **options)[0, len(prompt) :].tolist()


def main() -> None:
    """Write both files."""
    arrays = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case, options in CASES.items():
            logits, tokens = tiny_reference(make_tiny(Path(scratch) / case, **options))
            arrays |= {f"{case}.logits": logits[0, -KEPT:], f"{case}.greedy": np.asarray(tokens)}
    np.savez_compressed(HERE / "tiny.npz", **arrays)
    model, tokenizer = smollm2_reference()
    tokens = tokenizer(TEXT)["input_ids"]
    smollm2 = {
        "perplexity": perplexity(reference_logits(model, np.asarray([tokens])), tokens),
        "greedy": reference_greedy(model, tokenizer(STORY)["input_ids"], 32),
        "encodings": [tokenizer(string)["input_ids"] for string in STRINGS],
    }
    (HERE / "smollm2.json").write_text(json.dumps(smollm2) + "\n")


if __name__ == "__main__":
    main()
