"""Adapters as PEFT's files, and back: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT holds A as (r, in) and B as (out, r) for each module on its own, and adds ``lora_alpha / r * B(A(x))``. With
``lora_alpha=32`` that is this lab's product, so that only layout and names differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from txlab.lora.peft_options import CONFIG_FILE, PeftError, read_alpha, read_options
from txlab.lora.state import ALPHA, AdapterState
from txlab.models.config import ATTENTION, MLP, UNEMBED, ModelConfig, projection_shapes
from txlab.models.files import FLOATS, ModelFileError, open_safetensors, read_json, some

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
BLOCKS = dict.fromkeys(ATTENTION, "self_attn") | dict.fromkeys(MLP, "mlp")
FACTORS = {"a": "lora_A", "b": "lora_B"}
# Modules that PEFT may store whole beside an adapter (``save_embedding_layers``), by the lab's names for their weights.
EMBEDDINGS = {"model.embed_tokens": "embedding", "lm_head": "head"}
_ADAPTER_NAME = re.compile(r"(?<=\.lora_[AB])\.([^.]+)(?=\.weight$)")


def peft_files(state: AdapterState, base_model: str) -> dict[str, bytes]:
    """Return the contents of each file, by name; ``base_model`` is what PEFT loads the adapter on.

    An adapter of ``lm_head`` is one of the output alone, also where the embedding is tied to it: PEFT warns of that,
    since merging it would change the embedding too.
    """
    tensors = {key: np.ascontiguousarray(array) for key, array in _to_modules(state.weights)}
    modules = sorted({name.rsplit(".", 1)[0] for name in state.weights})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": state.lora.rank,
        "lora_alpha": int(ALPHA),
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    return {
        CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
    }


def from_peft(folder: Path, config: ModelConfig, base: Mapping[str, Any] | None = None) -> AdapterState:
    """Read a PEFT adapter of a model of shape ``config``; another ``lora_alpha`` than 32 is taken into B.

    PEFT stores the base weights of an adapted ``lm_head`` too: they must be those of ``base``, which maps "embedding"
    and "head" to (V, D) arrays.

    Raises PeftError where files are missing or broken, for kinds of adapter other than plain LoRA, where it does
    not sit on all projections of the attention, of the MLP or of the output, in every layer, or on another base.
    """
    settings = _read_config(folder)
    lora, scale = read_options(settings), np.float32(read_alpha(settings) / ALPHA)
    tensors = _Tensors(folder)
    groups = ((lora.train_attn, ATTENTION), (lora.train_mlp, MLP), (lora.train_unembed, UNEMBED))
    shapes = projection_shapes(config)
    weights = {}
    for name in (name for adapted, names in groups if adapted for name in names):
        n_in, n_out = shapes[name]
        layers = None if name in UNEMBED else config.num_layers
        weights[f"{name}.a"] = _take(tensors, name, "a", (lora.rank, n_in), layers)
        weights[f"{name}.b"] = _take(tensors, name, "b", (n_out, lora.rank), layers) * scale
    _compare_base(tensors, base or {})
    if tensors.names:
        raise PeftError(f"{WEIGHTS_FILE} has tensors of no use to this model: {some(tensors.names)}")
    return AdapterState(lora, weights)


# ------------------------------------------------------------------------------------------ names


def _key(name: str, factor: str, layer: int | None) -> str:
    """PEFT's name of one factor of one module."""
    module = name if layer is None else f"model.layers.{layer}.{BLOCKS[name]}.{name}"
    return f"{PREFIX}{module}.{FACTORS[factor]}.weight"


def _to_modules(weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Unstack the layers; PEFT's matrices are the transposes of ours."""
    for stacked_name, stacked in weights.items():
        name, factor = stacked_name.rsplit(".", 1)
        if name in UNEMBED:
            yield _key(name, factor, None), stacked.T
        else:
            for layer, array in enumerate(stacked):  # (in, r) or (r, out)
                yield _key(name, factor, layer), array.T


def _take(tensors: _Tensors, name: str, factor: str, shape: tuple[int, int], layers: int | None) -> np.ndarray:
    """Take one factor out of ``tensors``, as (in, r) or (r, out) float32, stacked over ``layers`` where there are."""
    taken = []
    for layer in (None,) if layers is None else range(layers):
        key = _key(name, factor, layer)
        if key not in tensors.names:
            raise PeftError(f"{WEIGHTS_FILE} has no {key!r}: expected one in every layer of the model")
        array = tensors.take(key)
        if array.shape != shape:
            raise PeftError(f"{key!r} has shape {array.shape}: this model and rank want {shape}")
        taken.append(array.astype(np.float32).T)
        if not np.isfinite(taken[-1]).all():
            raise PeftError(f"{key!r} holds NaN or infinity")
    return np.ascontiguousarray(taken[0] if layers is None else np.stack(taken))


# ----------------------------------------------------------------------------------------- reading


class _Tensors:
    """The tensors of an adapter that nobody has taken yet, under PEFT's names of today. Raises PeftError."""

    def __init__(self, folder: Path):
        _check_weights(folder)
        try:
            self._file = open_safetensors(folder / WEIGHTS_FILE)
        except ModelFileError as error:
            raise PeftError(f"the PEFT adapter in {folder} is broken: {error}") from None
        self.names: dict[str, str] = {}  # name -> as the file spells it
        for stored in self._file.keys():  # noqa: SIM118 - not a dict
            name = _ADAPTER_NAME.sub("", stored if stored.startswith(PREFIX) else PREFIX + stored)
            if name in self.names:
                raise PeftError(f"{WEIGHTS_FILE} holds several adapters: it has {self.names[name]!r} and {stored!r}")
            self.names[name] = stored

    def take(self, name: str) -> np.ndarray:
        array = np.asarray(self._file.get_tensor(self.names.pop(name)))
        if array.dtype.name not in FLOATS:
            raise PeftError(f"{name!r} is stored as {array.dtype}: expected one of {', '.join(FLOATS)}")
        return array


def _compare_base(tensors: _Tensors, base: Mapping[str, Any]) -> None:
    """Take out the base weights that are stored beside the adapter; PeftError where they are not those of ``base``."""
    for module, own in EMBEDDINGS.items():
        for name in (f"{PREFIX}{module}.base_layer.weight", f"{PREFIX}{module}.weight"):
            if name in tensors.names and own in base:
                stored, array = tensors.take(name), np.asarray(base[own])
                if stored.shape != array.shape:
                    raise PeftError(
                        f"{WEIGHTS_FILE} holds {name!r} of shape {stored.shape}, this model's is {array.shape}: "
                        "the adapter was trained with another vocabulary"
                    )
                if not _same(stored, array):
                    raise PeftError(
                        f"{WEIGHTS_FILE} holds {name!r}, and it is not this model's: the adapter was trained on other "
                        "base weights. Serve that model; or, if the adapter alone is wanted, save it again without "
                        "them: model.save_pretrained(folder, save_embedding_layers=False)"
                    )


def _same(stored: np.ndarray, own: np.ndarray) -> bool:
    """Whether two arrays are equal in the coarser of their types: one may have been rounded when it was loaded."""
    kind = min((stored.dtype, own.dtype), key=lambda dtype: dtype.itemsize)
    return np.array_equal(stored.astype(kind), own.astype(kind))


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG_FILE).is_file():
        inside = [path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}")]
        hint = f"; it holds adapters in folders of their own: {some(inside)}" if inside else ""
        raise PeftError(f"{folder} is no PEFT adapter: No such file or directory: {folder / CONFIG_FILE}{hint}")
    try:
        return read_json(folder / CONFIG_FILE)
    except ModelFileError as error:
        raise PeftError(f"the PEFT adapter in {folder} is broken: {error}") from None


def _check_weights(folder: Path) -> None:
    if (folder / WEIGHTS_FILE).exists():
        return
    if (folder / PICKLED_FILE).exists():
        raise PeftError(
            f"{folder} has {PICKLED_FILE}, which PyTorch alone reads, and no {WEIGHTS_FILE}; convert it once: "
            f'safetensors.torch.save_file(torch.load("{PICKLED_FILE}", weights_only=True), "{WEIGHTS_FILE}")'
        )
    raise PeftError(f"{folder} is no PEFT adapter: No such file or directory: {folder / WEIGHTS_FILE}")
