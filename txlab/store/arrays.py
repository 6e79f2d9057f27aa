"""An adapter's arrays in one safetensors file: ``<group>/<name>``, where a group is the weights or a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open

from txlab.lora.state import AdapterState


def flatten(state: AdapterState, optimizer: bool) -> dict[str, np.ndarray]:
    """Name the arrays ``<group>/<name>``; the moments only with ``optimizer``, and where there are any."""
    groups = {"weights": state.weights}
    if optimizer and state.first_moment is not None and state.second_moment is not None:
        groups |= {"first_moment": state.first_moment, "second_moment": state.second_moment}
    return {
        f"{group}/{name}": np.ascontiguousarray(array)
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }


def read_arrays(file: Path, groups: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of the named groups, without reading the others. FileNotFoundError where there is no ``file``."""
    found: dict[str, dict[str, np.ndarray]] = {group: {} for group in groups}
    with safe_open(file, framework="numpy") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a mapping
            group, _, name = key.partition("/")
            if group in found:
                found[group][name] = tensors.get_tensor(key)
    return found
