"""Streams base weights, tensor by tensor, from safetensors or GGUF into the arrays of a Decoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGML_QUANT_SIZES, ReaderTensor, dequantize
from jax.sharding import Mesh

from txlab.models.config import ModelConfig
from txlab.models.decoder import parameter_shapes
from txlab.models.files import ModelFileError, open_gguf, open_safetensors, read_json, some, why_no_weights
from txlab.models.mesh import sharding
from txlab.models.progress import progress

logger = logging.getLogger(__name__)

WHOLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STORED_FLOATS = ("F64", "F32", "F16", "BF16")  # other types are those of quantized weights
_COMPARED_ROWS = 4096  # of two matrices at a time: several megabytes
HF_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "unembedding": "lm_head.weight",
    "norm": "model.norm.weight",
    "layers.attention_norm": "model.layers.{}.input_layernorm.weight",
    "layers.mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers.q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers.k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "layers.q_proj": "model.layers.{}.self_attn.q_proj.weight",
    "layers.k_proj": "model.layers.{}.self_attn.k_proj.weight",
    "layers.v_proj": "model.layers.{}.self_attn.v_proj.weight",
    "layers.o_proj": "model.layers.{}.self_attn.o_proj.weight",
    "layers.q_proj.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers.k_proj.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers.v_proj.bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers.o_proj.bias": "model.layers.{}.self_attn.o_proj.bias",
    "layers.gate_proj": "model.layers.{}.mlp.gate_proj.weight",
    "layers.up_proj": "model.layers.{}.mlp.up_proj.weight",
    "layers.down_proj": "model.layers.{}.mlp.down_proj.weight",
}
GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "unembedding": "output.weight",
    "norm": "output_norm.weight",
    "layers.attention_norm": "blk.{}.attn_norm.weight",
    "layers.mlp_norm": "blk.{}.ffn_norm.weight",
    "layers.q_norm": "blk.{}.attn_q_norm.weight",
    "layers.k_norm": "blk.{}.attn_k_norm.weight",
    "layers.q_proj": "blk.{}.attn_q.weight",
    "layers.k_proj": "blk.{}.attn_k.weight",
    "layers.v_proj": "blk.{}.attn_v.weight",
    "layers.o_proj": "blk.{}.attn_output.weight",
    "layers.q_proj.bias": "blk.{}.attn_q.bias",
    "layers.k_proj.bias": "blk.{}.attn_k.bias",
    "layers.v_proj.bias": "blk.{}.attn_v.bias",
    "layers.o_proj.bias": "blk.{}.attn_output.bias",
    "layers.gate_proj": "blk.{}.ffn_gate.weight",
    "layers.up_proj": "blk.{}.ffn_up.weight",
    "layers.down_proj": "blk.{}.ffn_down.weight",
}
ROPE_FACTORS = "rope_freqs.weight"  # in GGUF files; a constant of the model and no parameter


class WeightsError(ModelFileError):
    """The files of a model do not hold what its configuration promises; the message names the tensor."""


class Tensors(Protocol):
    """Named tensors in files, read one at a time."""

    @property
    def spelling(self) -> Mapping[str, str]:
        """Parameter of a Decoder -> name of its tensor, {} standing for the layer."""

    @property
    def names(self) -> frozenset[str]:
        """All that the files hold."""

    def read(self, name: str) -> np.ndarray:
        """The tensor in Hugging Face's layout: matrices (out, in)."""


class SafetensorsFolder:
    """``model.safetensors``, or the shards that ``model.safetensors.index.json`` lists. Raises ModelFileError."""

    spelling = HF_NAMES

    def __init__(self, folder: Path):
        self._files: dict[str, Any] = {}
        places: dict[str, Path] = {}
        for path in safetensors_files(folder):
            handle = open_safetensors(path)
            for name in handle.keys():  # noqa: SIM118 - not a dict
                if name in places:
                    raise WeightsError(f"tensor {name!r} is in both {places[name]} and {path.name}: which is meant?")
                kind = handle.get_slice(name).get_dtype()
                if kind not in STORED_FLOATS:
                    raise WeightsError(_no_floats(path, name, kind))
                places[name] = path
                self._files[name] = handle
        self.names = frozenset(self._files)

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self._files[name].get_tensor(name))

    def equal(self, name: str, other: str) -> bool:
        """Whether two matrices are the same, read a part at a time."""
        mine, its = (self._files[each].get_slice(each) for each in (name, other))
        if mine.get_shape() != its.get_shape():
            return False
        rows = mine.get_shape()[0]
        parts = (slice(start, min(start + _COMPARED_ROWS, rows)) for start in range(0, rows, _COMPARED_ROWS))
        return all(np.array_equal(mine[part], its[part]) for part in parts)


def safetensors_files(folder: Path) -> list[Path]:
    """The weights of a Hugging Face folder, whole or else in shards. Raises ModelFileError where some are missing."""
    index = folder / INDEX_FILE
    names = _shards(index) if index.exists() and not (folder / WHOLE_FILE).exists() else {WHOLE_FILE}
    files = [folder / name for name in sorted(names)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        cure = why_no_weights([path.name for path in folder.iterdir()])
        cure = cure or "weights are read from safetensors files only"
        raise WeightsError(f"{folder} lacks {some(missing)}; {cure}")
    return files


def _shards(index: Path) -> set[str]:
    """The files that an index names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise WeightsError(f"{index} has no weight_map, which says what file each tensor is in")
    return set(weight_map.values())


def _no_floats(path: Path, name: str, kind: str) -> str:
    return (
        f"{path} stores {name!r} as {kind}, so its weights are quantized: "
        "serve the model in float32, bfloat16 or float16, or as a GGUF file"
    )


def own_head(config: ModelConfig, tensors: SafetensorsFolder) -> ModelConfig:
    """``config``, untied where the files hold an unembedding that is not the embedding, as transformers 5 takes them.

    Merging and pruning tools leave such files behind: the head is then the better witness than the configuration.
    """
    head, embedding = tensors.spelling["unembedding"], tensors.spelling["embedding"]
    both = {head, embedding} <= tensors.names
    if not config.tie_word_embeddings or not both or tensors.equal(head, embedding):
        return config
    logger.warning(
        "config.json has tie_word_embeddings, but %s is stored and is not %s: it is used. "
        "Set tie_word_embeddings to false there to end this warning.",
        head,
        embedding,
    )
    return replace(config, tie_word_embeddings=False)


class GGUFFile:
    """A GGUF file, quantized or not; ``metadata`` holds its key-value pairs. Raises WeightsError."""

    spelling = GGUF_NAMES

    def __init__(self, path: Path):
        reader = open_gguf(path)
        self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        _refuse_parts(path, self.metadata)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        _refuse_kinds(path, self._tensors)
        self.names = frozenset(self._tensors) - {ROPE_FACTORS}

    @property
    def rope_factors(self) -> tuple[float, ...]:
        """Divisors of the rotary frequencies; empty where the file has none."""
        return tuple(self.read(ROPE_FACTORS).tolist()) if ROPE_FACTORS in self._tensors else ()

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        array = dequantize(tensor.data, tensor.tensor_type)
        if self.metadata["general.architecture"] == "llama":
            heads = self.metadata["llama.attention.head_count"]
            if ".attn_q." in name:
                return _unpermute(array, heads)
            if ".attn_k." in name:
                return _unpermute(array, self.metadata.get("llama.attention.head_count_kv", heads))
        return array


def _refuse_kinds(path: Path, tensors: Mapping[str, ReaderTensor]) -> None:
    """Raise WeightsError for numbers that cannot be dequantized, found by a single block of each kind."""
    for kind, name in {tensor.tensor_type: name for name, tensor in tensors.items()}.items():
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            raise WeightsError(
                f"{path} holds {kind.name} numbers (in {name}), which cannot be read: take the file of another "
                "quantization, such as Q8_0, or the model as safetensors"
            ) from None


def _refuse_parts(path: Path, metadata: Mapping[str, Any]) -> None:
    count = metadata.get("split.count", 1)
    if count > 1:
        part = metadata.get("split.no", 0) + 1
        first = path.name.replace(f"-{part:05d}-of-", "-00001-of-")
        whole = first.replace(f"-00001-of-{count:05d}", "")
        whole = whole if whole != first else f"whole-{first}"
        raise WeightsError(
            f"{path} is part {part} of {count} of a split GGUF file, and txlab reads whole ones. Join the parts: "
            f"llama-gguf-split --merge {first} {whole}"
        )


def load_parameters(
    config: ModelConfig, tensors: Tensors, mesh: Mesh, dtype: str = "float32"
) -> dict[str, jax.Array | list[jax.Array]]:
    """All parameters of a Decoder in ``dtype``, placed on ``mesh``; one tensor at a time is in host memory.

    Raises WeightsError for missing, unexpected or misshapen tensors.
    """
    shapes = parameter_shapes(config)
    check_names(config, tensors)
    total = sum(len(_names(name, tensors, config)) for name in shapes)
    parameters: dict[str, jax.Array | list[jax.Array]] = {}
    with progress(total, "Loading weights", "tensor") as bar:
        for name, shape in shapes.items():
            of_layers = name.startswith("layers.")
            arrays = []
            for tensor in _names(name, tensors, config):
                array = _read(tensors, tensor, shape, dtype)
                arrays.append(jax.device_put(array, sharding(mesh, name)))
                bar.update()
            parameters[name] = arrays if of_layers else arrays[0]
    return parameters


def _names(parameter: str, tensors: Tensors, config: ModelConfig) -> list[str]:
    """Names of the tensors of one parameter: one, or one for each layer."""
    spelling = tensors.spelling[parameter]
    if parameter == "embedding" and config.tie_word_embeddings and spelling not in tensors.names:
        spelling = tensors.spelling["unembedding"]  # of two that are one, either may be stored
    return [spelling.format(layer) for layer in range(config.num_layers)] if "{}" in spelling else [spelling]


def _read(tensors: Tensors, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = tensors.read(name)
    if array.shape != shape:
        raise WeightsError(f"tensor {name!r} has shape {array.shape}, but the configuration makes it {shape}")
    return np.ascontiguousarray(array, jnp.dtype(dtype))


def check_names(config: ModelConfig, tensors: Tensors) -> None:
    """Raise WeightsError where tensors are missing or unexpected."""
    expected = {tensor for parameter in parameter_shapes(config) for tensor in _names(parameter, tensors, config)}
    ignored = {tensors.spelling["unembedding"]} if config.tie_word_embeddings else set()
    unexpected = {name for name in tensors.names - expected - ignored if not name.endswith("rotary_emb.inv_freq")}
    for problem, names in (("lacks", expected - tensors.names), ("has unexpected", unexpected)):
        if names:
            raise WeightsError(
                f"the {config.architecture} model {problem} tensors: {some(names, 5)}{_hint(names, tensors)}"
            )


def _hint(names: Set[str], tensors: Tensors) -> str:
    """Reasons why the output may be missing."""
    if tensors.spelling["unembedding"] not in names - tensors.names:
        return ""
    return "; if the model's output shares the embedding, set tie_word_embeddings to true in config.json"


def _unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rows: pairs of a rotation interleaved -> two halves, as Hugging Face keeps them."""
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
