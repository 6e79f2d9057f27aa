"""An adapter as plain data: its configuration, and its arrays in host memory. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

ALPHA = 32.0  # an adapter's product is scaled by ALPHA / rank


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Shape and seed of an adapter. Its product is scaled by 32 / rank."""

    rank: int = 32
    seed: int | None = None
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class AdapterState:
    """An adapter in host memory: what a checkpoint holds.

    ``weights`` maps ``"q_proj.a"``, ``"q_proj.b"`` and the like to float32 arrays stacked over layers (see
    ``lora/adapter.py``); the moments have the same names and shapes. ``step`` counts optimizer steps taken.
    """

    lora: LoraConfig
    weights: Mapping[str, np.ndarray]
    step: int = 0
    first_moment: Mapping[str, np.ndarray] | None = None
    second_moment: Mapping[str, np.ndarray] | None = None
