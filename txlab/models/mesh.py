"""The mesh of devices, and where each parameter lies on it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

AXES = ("data", "model")

_COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # split along out
_ROW = ("o_proj", "down_proj")  # split along in


class NoDevice(RuntimeError):  # noqa: N818 - says what it is
    """JAX finds no device of the kind that it is told to use; the message says how to choose another."""


def make_mesh(devices: Sequence[jax.Device] | None = None, model: int = 1) -> Mesh:
    """A (data, model) mesh of ``devices`` (None: the first alone), ``model`` of them to one copy of the weights.

    Raises NoDevice where JAX has none.
    """
    devices = _first_device() if devices is None else devices
    return Mesh(np.asarray(devices).reshape(-1, model), AXES)


def _first_device() -> Sequence[jax.Device]:
    try:
        return jax.devices()[:1]
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).splitlines()[0]
        raise NoDevice(
            f"JAX finds no device for JAX_PLATFORMS={asked} ({reason}): set JAX_PLATFORMS=cpu or unset it and restart "
            "the kernel; or install JAX for that device, as jax[cuda12]"
        ) from None


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
