"""A mesh of several devices, in a process that has them."""

from __future__ import annotations

import subprocess
import sys

from txlab.models.mesh import AXES, make_mesh

PROGRAM = """
import sys
import jax, numpy as np
from tests.models.compute import full_logits
from txlab.config import ModelSettings
from txlab.models.base import load_base
from txlab.models.mesh import make_mesh

settings, tokens = ModelSettings(name=sys.argv[1]), np.arange(3, 19)[None]
alone, split = load_base(settings), load_base(settings, make_mesh(jax.devices(), model=2))
kernel = split.decoder.weights[0]["q_proj"]
assert kernel.sharding.shard_shape(kernel.shape) == (32, 64), kernel.sharding
np.testing.assert_allclose(full_logits(split, tokens), full_logits(alone, tokens), rtol=0, atol=1e-4)
"""


def test_one_device_by_default():
    mesh = make_mesh()
    assert mesh.axis_names == AXES
    assert mesh.size == 1


def test_weights_split_over_devices_give_the_same_logits(tiny_llama):
    flags = "--xla_force_host_platform_device_count=2"
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_llama)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
