"""The mesh of devices, and where each parameter lies on it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

AXES = ("data", "model")

_COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # split along out
_ROW = ("o_proj", "down_proj")  # split along in


def make_mesh(devices: Sequence[jax.Device] | None = None, model: int = 1) -> Mesh:
    """A (data, model) mesh of ``devices`` (None: the first alone), ``model`` of them to one copy of the weights."""
    devices = jax.devices()[:1] if devices is None else devices
    return Mesh(np.asarray(devices).reshape(-1, model), AXES)


def partition_spec(name: str) -> PartitionSpec:
    """How the parameter ``name`` of a Decoder is split: matrices over "model", everything else whole."""
    leaf = name.removeprefix("layers.")
    if leaf in _COLUMN:
        return PartitionSpec("model", None)
    if leaf in _ROW:
        return PartitionSpec(None, "model")
    if leaf.removesuffix(".bias") in _COLUMN:
        return PartitionSpec("model")
    if leaf in ("embedding", "unembedding"):
        return PartitionSpec("model", None)
    return PartitionSpec()


def replicated(mesh: Mesh) -> Sharding:
    """A whole copy on every device of ``mesh``."""
    return _placement(mesh, PartitionSpec())


def sharding(mesh: Mesh, name: str) -> Sharding:
    """Placement of the parameter ``name`` on ``mesh``."""
    return _placement(mesh, partition_spec(name))


def _placement(mesh: Mesh, spec: PartitionSpec) -> Sharding:
    """On one device, plainly there: specs that mean the same but differ would compile a program twice."""
    return SingleDeviceSharding(mesh.devices.item()) if mesh.size == 1 else NamedSharding(mesh, spec)
