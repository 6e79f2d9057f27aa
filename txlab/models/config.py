"""What a base model is made of, read from a Hugging Face ``config.json`` or from GGUF metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from txlab.models.fields import Fields
from txlab.models.files import ModelFileError

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
FULL_ATTENTION = "full_attention"
ORIGINAL = "original_max_position_embeddings"
# Options of GGUF files, with the values that leave yarn as it is; -1 is llama.cpp's word for "as usual".
GGUF_YARN = {
    "attn_factor": (1.0, 0.0),
    "yarn_attn_factor": (1.0,),
    "yarn_ext_factor": (1.0, -1.0),
    "yarn_log_multiplier": (0.0,),
}
GGUF_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
UNEMBED = ("lm_head",)

log = logging.getLogger(__name__)

BLOCK = 128  # queries, and keys, that attention takes at once: fastest on CPU


class UnsupportedModel(ModelFileError):  # noqa: N818 - says what it is
    """A model that the decoder does not compute; the message says what is supported."""

    def __init__(self, what: str, value: object, supported: tuple[str, ...]):
        super().__init__(f"{what} {value!r} is not supported; supported: {', '.join(supported)}")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched; fields are those of Hugging Face's ``rope_parameters``."""

    kind: str  # "linear", "llama3", "yarn" or "factors"
    factor: float
    original_context: int  # tokens that the model was first trained for
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn
    factors: tuple[float, ...] = ()  # factors: what divides each frequency, as a GGUF file says it


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
    def from_hf(
        cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None, where: str = "config.json"
    ) -> ModelConfig:
        """Read ``config.json`` (and ``generation_config.json``) as transformers 4 or 5 writes them.

        Raises UnsupportedModel for anything that the decoder would compute differently, and ModelFileError for entries
        that are missing or of another type; ``where`` is what the message calls the file.
        """
        entries = Fields(config, where)
        architecture = _architecture(config)
        vocab_size, layers = entries.size("vocab_size"), entries.size("num_hidden_layers")
        _refuse_variants(config, entries, layers)
        rope = _rope_parameters(config, entries)
        rotary = Fields(rope, f"the rope parameters of {where}")
        hidden, heads, kv_heads = _heads(entries)
        context = entries.size("max_position_embeddings", 2048)
        biased = entries.flag("attention_bias")
        qwen2 = architecture == "Qwen2ForCausalLM"
        return cls(
            architecture=architecture,
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=entries.size("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=entries.size("head_dim", hidden // heads),
            max_context=context,
            rope_theta=rotary.number("rope_theta", 10000.0),
            rope_scaling=_rope_scaling(rope, rotary, context),
            rms_norm_eps=entries.number("rms_norm_eps", 1e-6),
            tie_word_embeddings=entries.flag("tie_word_embeddings"),
            qkv_bias=biased or qwen2,
            o_bias=biased and not qwen2,
            qk_norm=architecture == "Qwen3ForCausalLM",
            bos_ids=_ids("bos_token_id", vocab_size, generation or {}, config),
            eos_ids=_ids("eos_token_id", vocab_size, generation or {}, config),
        )

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], tensors: frozenset[str], rope_factors: Sequence[float] = ()
    ) -> ModelConfig:
        """Read GGUF metadata; ``tensors`` are the names that the file holds. Raises UnsupportedModel.

        ``rope_factors`` are what its ``rope_freqs.weight`` holds, as files of Llama 3.1 and later do.
        """
        arch = metadata["general.architecture"]
        if arch not in GGUF_ARCHITECTURES:
            raise UnsupportedModel("GGUF architecture", arch, tuple(GGUF_ARCHITECTURES))
        model = {key.removeprefix(f"{arch}."): value for key, value in metadata.items()}
        vocab_size = len(metadata.get("tokenizer.ggml.tokens", ()))
        heads = model["attention.head_count"]
        head_dim = model.get("attention.key_length", model["embedding_length"] // heads)
        if model.get("rope.dimension_count", head_dim) != head_dim:
            raise UnsupportedModel("rope.dimension_count", model["rope.dimension_count"], (f"{head_dim}, of all",))
        return cls(
            architecture=GGUF_ARCHITECTURES[arch],
            vocab_size=vocab_size,
            hidden_size=model["embedding_length"],
            intermediate_size=model["feed_forward_length"],
            num_layers=model["block_count"],
            num_heads=heads,
            num_kv_heads=model.get("attention.head_count_kv", heads),
            head_dim=head_dim,
            max_context=model["context_length"],
            rope_theta=model.get("rope.freq_base", 10000.0),
            rope_scaling=_gguf_rope_scaling(model, tuple(rope_factors)),
            rms_norm_eps=model["attention.layer_norm_rms_epsilon"],
            tie_word_embeddings="output.weight" not in tensors,
            qkv_bias="blk.0.attn_q.bias" in tensors,
            o_bias="blk.0.attn_output.bias" in tensors,
            qk_norm="blk.0.attn_q_norm.weight" in tensors,
            bos_ids=_ids("tokenizer.ggml.bos_token_id", vocab_size, metadata),
            eos_ids=_gguf_ends(vocab_size, metadata),
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
    names = config.get("architectures") or config.get("model_type", "unknown")
    name = str(names[0]) if isinstance(names, list) else str(names)
    if name not in ARCHITECTURES:
        raise UnsupportedModel("architecture", name, ARCHITECTURES)
    return name


def _heads(entries: Fields) -> tuple[int, int, int]:
    """Width, query heads and key heads, which divide one another."""
    hidden, heads = entries.size("hidden_size"), entries.size("num_attention_heads")
    kv_heads = entries.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise UnsupportedModel("num_key_value_heads", kv_heads, (f"a divisor of num_attention_heads, {heads}",))
    if hidden < heads:
        raise UnsupportedModel("hidden_size", hidden, (f"at least num_attention_heads, {heads}",))
    return hidden, heads, kv_heads


def _refuse_variants(config: Mapping[str, Any], entries: Fields, layers: int) -> None:
    """Raise for options of supported architectures that change what they compute."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel("activation", activation, ("silu",))
    if entries.flag("mlp_bias"):
        raise UnsupportedModel("mlp_bias", True, ("false",))
    if quantization := entries.entries("quantization_config"):
        method = quantization.get("quant_method", "unknown")
        raise UnsupportedModel("quantization", method, ("float32", "bfloat16", "float16"))
    windowed = entries.flag("use_sliding_window") and (config.get("max_window_layers") or 0) < layers
    if windowed or "sliding_attention" in (config.get("layer_types") or ()):
        raise UnsupportedModel("attention", "sliding window", ("full attention",))


def _rope_parameters(config: Mapping[str, Any], entries: Fields) -> dict[str, Any]:
    """One dictionary from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (4)."""
    rope = {"rope_theta": config.get("rope_theta")}
    rope |= entries.entries("rope_scaling")
    rope |= entries.entries("rope_parameters")
    if FULL_ATTENTION in rope:  # of models whose layers may differ in kind; here all are of this one
        rope |= Fields(rope, "config.json").entries(FULL_ATTENTION)
    elif _kind(rope) in ("llama3", "yarn") and config.get(ORIGINAL) is not None:  # there transformers lets it go first
        rope[ORIGINAL] = config[ORIGINAL]
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModel("partial_rotary_factor", rope.get("partial_rotary_factor"), ("1.0",))
    return rope


def _rope_scaling(rope: Mapping[str, Any], rotary: Fields, context: int) -> RopeScaling | None:
    """``rotary`` reads ``rope`` by type; ``context`` is what the model may see."""
    kind = _kind(rope)
    if kind not in ROPE_TYPES:
        raise UnsupportedModel("rope type", kind, ROPE_TYPES)
    if kind == "default":
        return None
    if kind == "yarn" and (rope.get("mscale") or rope.get("mscale_all_dim")):
        raise UnsupportedModel("yarn option", "mscale", ("attention_factor",))
    original = rotary.size(ORIGINAL, context)
    # Where yarn's factor is null, it is how far the context was stretched.
    factor = rotary.number("factor", context / original if kind == "yarn" and "factor" in rope else None)
    required = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ()
    names = (*required, "beta_fast", "beta_slow", "attention_factor")
    given: dict[str, Any] = {
        name: rotary.number(name) for name in names if rope.get(name) is not None or name in required
    }
    return RopeScaling(kind, factor, original, truncate=rotary.flag("truncate", True), **given)


def _kind(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type") or rope.get("type") or "default"


def _gguf_rope_scaling(model: Mapping[str, Any], factors: tuple[float, ...]) -> RopeScaling | None:
    context = model["context_length"]
    kind = model.get("rope.scaling.type", "none")
    if factors and kind == "none":
        return RopeScaling("factors", 1.0, context, factors=factors)
    if factors:
        raise UnsupportedModel("rope_freqs.weight with rope scaling", kind, ("rope_freqs.weight alone",))
    for option, plain in GGUF_YARN.items():
        if (value := model.get(f"rope.scaling.{option}", plain[0])) not in plain:
            raise UnsupportedModel(f"rope.scaling.{option}", value, tuple(map(str, plain)))
    rope = {
        "rope_type": "default" if kind == "none" else kind,
        "factor": model.get("rope.scaling.factor", 1.0),
        ORIGINAL: model.get("rope.scaling.original_context_length"),
        "beta_fast": model.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": model.get("rope.scaling.yarn_beta_slow"),
    }
    return _rope_scaling(rope, Fields(rope, "the file's rope scaling"), context)


def _gguf_ends(vocab_size: int, metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Tokens that end a text, a turn or a message."""
    ids = [_ids(f"tokenizer.ggml.{end}_token_id", vocab_size, metadata) for end in ("eos", "eot", "eom")]
    return tuple(dict.fromkeys(i for some in ids for i in some))


def known_ids(name: str, vocab_size: int, *values: Any) -> tuple[int, ...]:
    """Every token id in ``values``, ids or lists of them, once and in order.

    What is no token of the model, as published files have it, is left out with a line in the log.
    """

    def is_token(value: Any) -> bool:
        return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) < vocab_size

    flat = [i for value in values for i in (value if isinstance(value, list) else [value]) if i is not None]
    if strange := list(dict.fromkeys(repr(i) for i in flat if not is_token(i))):
        log.warning("%s: left out %s: tokens of this model are 0 … %d", name, ", ".join(strange), vocab_size - 1)
    return tuple(dict.fromkeys(int(i) for i in flat if is_token(i)))


def _ids(name: str, vocab_size: int, *files: Mapping[str, Any]) -> tuple[int, ...]:
    return known_ids(name, vocab_size, *(file.get(name) for file in files))
