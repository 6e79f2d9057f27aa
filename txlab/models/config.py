"""What a base model is made of, read from a Hugging Face ``config.json`` or from GGUF metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
GGUF_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
UNEMBED = ("lm_head",)

log = logging.getLogger(__name__)

BLOCK = 128  # queries, and keys, that attention takes at once: fastest on CPU


class UnsupportedModel(ValueError):  # noqa: N818 - says what it is
    """A model that the decoder does not compute; the message says what is supported."""

    def __init__(self, what: str, value: object, supported: tuple[str, ...]):
        super().__init__(f"{what} {value!r} is not supported; supported: {', '.join(supported)}")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched; fields are those of Hugging Face's ``rope_parameters``."""

    kind: str  # "linear", "llama3" or "yarn"
    factor: float
    original_context: int  # tokens that the model was first trained for
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of a decoder of the Llama/Qwen family."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int  # tokens
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    bos_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
        """Read ``config.json`` (and ``generation_config.json``) as transformers 4 or 5 writes them.

        Raises UnsupportedModel for anything that the decoder would compute differently.
        """
        generation = generation or {}
        architecture = _architecture(config)
        _refuse_variants(config)
        rope = _rope_parameters(config)
        heads = config["num_attention_heads"]
        biased = bool(config.get("attention_bias", False))
        qwen2 = architecture == "Qwen2ForCausalLM"
        return cls(
            architecture=architecture,
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            max_context=config.get("max_position_embeddings", 2048),
            rope_theta=float(rope.get("rope_theta", 10000.0)),
            rope_scaling=_rope_scaling(rope, config),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=biased or qwen2,
            o_bias=biased and not qwen2,
            qk_norm=architecture == "Qwen3ForCausalLM",
            bos_ids=_ids("bos_token_id", config["vocab_size"], generation, config),
            eos_ids=_ids("eos_token_id", config["vocab_size"], generation, config),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: frozenset[str]) -> ModelConfig:
        """Read GGUF metadata; ``tensors`` are the names that the file holds. Raises UnsupportedModel."""
        arch = metadata["general.architecture"]
        if arch not in GGUF_ARCHITECTURES:
            raise UnsupportedModel("GGUF architecture", arch, tuple(GGUF_ARCHITECTURES))
        if "rope_freqs.weight" in tensors:
            raise UnsupportedModel("GGUF tensor", "rope_freqs.weight", ("the same model as a safetensors folder",))
        model = {key.removeprefix(f"{arch}."): value for key, value in metadata.items()}
        rope = {
            "rope_type": {"none": "default"}.get(kind := model.get("rope.scaling.type", "none"), kind),
            "factor": model.get("rope.scaling.factor", 1.0),
            "original_max_position_embeddings": model.get("rope.scaling.original_context_length"),
        }
        heads = model["attention.head_count"]
        return cls(
            architecture=GGUF_ARCHITECTURES[arch],
            vocab_size=len(metadata["tokenizer.ggml.tokens"]),
            hidden_size=model["embedding_length"],
            intermediate_size=model["feed_forward_length"],
            num_layers=model["block_count"],
            num_heads=heads,
            num_kv_heads=model.get("attention.head_count_kv", heads),
            head_dim=model.get("attention.key_length", model["embedding_length"] // heads),
            max_context=model["context_length"],
            rope_theta=model.get("rope.freq_base", 10000.0),
            rope_scaling=_rope_scaling(rope, {"max_position_embeddings": model["context_length"]}),
            rms_norm_eps=model["attention.layer_norm_rms_epsilon"],
            tie_word_embeddings="output.weight" not in tensors,
            qkv_bias="blk.0.attn_q.bias" in tensors,
            o_bias="blk.0.attn_output.bias" in tensors,
            qk_norm="blk.0.attn_q_norm.weight" in tensors,
            bos_ids=_ids("tokenizer.ggml.bos_token_id", len(metadata["tokenizer.ggml.tokens"]), metadata),
            eos_ids=_ids("tokenizer.ggml.eos_token_id", len(metadata["tokenizer.ggml.tokens"]), metadata),
        )


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of every matrix that an adapter may sit on."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
        "lm_head": (hidden, config.vocab_size),
    }


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or [config.get("model_type", "unknown")]
    if names[0] not in ARCHITECTURES:
        raise UnsupportedModel("architecture", names[0], ARCHITECTURES)
    return names[0]


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Raise for options of supported architectures that change what they compute."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel("activation", activation, ("silu",))
    if config.get("mlp_bias"):
        raise UnsupportedModel("mlp_bias", True, ("false",))
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModel("quantization", method, ("float32", "bfloat16", "float16"))
    windowed = config.get("use_sliding_window") and config.get("max_window_layers", 0) < config["num_hidden_layers"]
    if windowed or "sliding_attention" in (config.get("layer_types") or ()):
        raise UnsupportedModel("attention", "sliding window", ("full attention",))


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (4)."""
    rope = {"rope_theta": config.get("rope_theta", 10000.0)}
    rope |= config.get("rope_scaling") or {}
    rope |= config.get("rope_parameters") or {}
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModel("partial_rotary_factor", rope.get("partial_rotary_factor"), ("1.0",))
    return rope


def _rope_scaling(rope: Mapping[str, Any], config: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise UnsupportedModel("rope type", kind, ROPE_TYPES)
    if kind == "default":
        return None
    if kind == "yarn" and (rope.get("mscale") or rope.get("mscale_all_dim")):
        raise UnsupportedModel("yarn option", "mscale", ("attention_factor",))
    original = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings", 2048)
    names = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "truncate")
    given = {name: rope[name] for name in names if rope.get(name) is not None}
    return RopeScaling(kind, float(rope["factor"]), original, **given)


def known_ids(name: str, vocab_size: int, *values: Any) -> tuple[int, ...]:
    """Every token id in ``values``, ids or lists of them, once and in order.

    What is no token of the model, as published files have it, is left out with a line in the log.
    """

    def is_token(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < vocab_size

    flat = [i for value in values for i in (value if isinstance(value, list) else [value]) if i is not None]
    if strange := list(dict.fromkeys(repr(i) for i in flat if not is_token(i))):
        log.warning("%s: left out %s: tokens of this model are 0 … %d", name, ", ".join(strange), vocab_size - 1)
    return tuple(dict.fromkeys(int(i) for i in flat if is_token(i)))


def _ids(name: str, vocab_size: int, *files: Mapping[str, Any]) -> tuple[int, ...]:
    return known_ids(name, vocab_size, *(file.get(name) for file in files))
