"""Adapters as PEFT's files, and back: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT holds A as (r, in) and B as (out, r) for each module on its own, and adds ``lora_alpha / r * B(A(x))``. With
``lora_alpha=32`` that is this lab's product, so that only layout and names differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from txlab.lora.state import ALPHA, AdapterState, LoraConfig
from txlab.models.config import ATTENTION, MLP, UNEMBED, ModelConfig, projection_shapes

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
BLOCKS = dict.fromkeys(ATTENTION, "self_attn") | dict.fromkeys(MLP, "mlp")
FACTORS = {"a": "lora_A", "b": "lora_B"}
# Options of PEFT that change what an adapter computes, each with the values under which it computes what ours do.
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (False,),
    "use_dora": (False,),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "layers_to_transform": ([],),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
}


class PeftError(ValueError):
    """A PEFT adapter that cannot be read as an adapter of this lab; the message says what stands in the way."""


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


def from_peft(folder: Path, config: ModelConfig) -> AdapterState:
    """Read a PEFT adapter of a model of shape ``config``; another ``lora_alpha`` than 32 is taken into B.

    Raises PeftError where files are missing or broken, for kinds of adapter other than plain LoRA, and where it does
    not sit on all projections of the attention, of the MLP or of the output, in every layer.
    """
    settings, tensors = _read(folder)
    _refuse_variants(settings)
    lora = _lora_config(settings)
    weights = {}
    for name, (n_in, n_out) in projection_shapes(config).items():
        if name in _targets(settings):
            layers = None if name in UNEMBED else config.num_layers
            weights[f"{name}.a"] = _take(tensors, name, "a", (lora.rank, n_in), layers)
            weights[f"{name}.b"] = _take(tensors, name, "b", (n_out, lora.rank), layers)
            weights[f"{name}.b"] *= np.float32(settings["lora_alpha"] / ALPHA)
    if tensors:
        raise PeftError(f"{WEIGHTS_FILE} has tensors of no use to this model: {_some(tensors)}")
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


def _take(
    tensors: dict[str, np.ndarray], name: str, factor: str, shape: tuple[int, int], layers: int | None
) -> np.ndarray:
    """Take one factor out of ``tensors``, as (in, r) or (r, out) float32, stacked over ``layers`` where there are."""
    taken = []
    for layer in (None,) if layers is None else range(layers):
        key = _key(name, factor, layer)
        if key not in tensors:
            raise PeftError(f"{WEIGHTS_FILE} has no {key!r}: expected one in every layer of the model")
        if tensors[key].shape != shape:
            raise PeftError(f"{key!r} has shape {tensors[key].shape}: this model and rank want {shape}")
        taken.append(tensors.pop(key).astype(np.float32).T)
    return np.ascontiguousarray(taken[0] if layers is None else np.stack(taken))


# ----------------------------------------------------------------------------------------- reading


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except OSError as error:
        raise PeftError(f"{folder} is no PEFT adapter: {error.strerror or 'missing'}: {error.filename}") from None
    except (ValueError, SafetensorError) as error:
        raise PeftError(f"the PEFT adapter in {folder} is broken: {error}") from None
    if not isinstance(settings, dict):
        raise PeftError(f"the PEFT adapter in {folder} is broken: {CONFIG_FILE} is no JSON object")
    return settings, tensors


def _refuse_variants(settings: Mapping[str, Any]) -> None:
    for option, plain in PLAIN.items():
        value = settings.get(option)
        if value is not None and value not in plain:
            raise PeftError(
                f"{CONFIG_FILE} has {option}={value!r}: only plain LoRA can be read ({option}={plain[0]!r})"
            )


def _lora_config(settings: Mapping[str, Any]) -> LoraConfig:
    """Which groups of projections the adapter sits on: each has all of its members, or none."""
    targets = _targets(settings)
    known = {*ATTENTION, *MLP, *UNEMBED}
    if unknown := targets - known:
        raise PeftError(f"target_modules names {_some(unknown)}: this lab adapts {', '.join(sorted(known))}")
    groups = {group: [name in targets for name in group] for group in (ATTENTION, MLP, UNEMBED)}
    for group, present in groups.items():
        if any(present) and not all(present):
            missing = [name for name, there in zip(group, present, strict=True) if not there]
            raise PeftError(f"target_modules lacks {_some(missing)}: this lab adapts all of {', '.join(group)} or none")
    attention, mlp, unembed = (any(present) for present in groups.values())
    return LoraConfig(_rank(settings), None, train_attn=attention, train_mlp=mlp, train_unembed=unembed)


def _rank(settings: Mapping[str, Any]) -> int:
    for option in ("r", "lora_alpha"):
        value = settings.get(option)
        if not isinstance(value, int | float) or value <= 0:
            raise PeftError(f"{CONFIG_FILE} has {option}={value!r}: expected a positive number")
    return int(settings["r"])


def _targets(settings: Mapping[str, Any]) -> set[str]:
    targets = settings.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise PeftError(f"{CONFIG_FILE} has target_modules={targets!r}: expected a list of modules")
    return set(targets)


def _some(names: Any) -> str:
    return ", ".join(sorted(names)[:4])
