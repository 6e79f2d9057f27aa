"""Kernels that serve a tiny model, one per hosting loop; tests of one loop share it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.kernels import Kernel, open_kernel

LOOPS = ("control", "main", "thread")

SERVE = """
%load_ext txlab
import asyncio, os, time, httpx, tinker, txlab
from tinker import types
lab = %txserve {model} --port {port} --loop {loop}
service = tinker.ServiceClient()
client = service.create_lora_training_client(base_model={model!r}, rank=4).result()
datum = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7, 8]),
    loss_fn_inputs={{"target_tokens": [6, 7, 8, 9], "weights": [1.0, 1.0, 1.0, 1.0]}},
)
"""


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's executable; where there is none, the test is skipped."""
    from tests.notebook.browser import CHROMIUM

    return CHROMIUM or pytest.skip("no Chromium on this machine")


@pytest.fixture(scope="session")
def lab_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process whose lab keeps to itself: own folders, no network, no telemetry."""
    home = tmp_path_factory.mktemp("txlab")
    dropped = {"TINKER_BASE_URL", "TINKER_API_KEY", "TXLAB_API_KEY"}
    own = {
        "TXLAB_HOME": str(home / "home"),
        "TXLAB_CACHE": str(home / "cache"),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "TINKER_TELEMETRY": "0",
        "JAX_PLATFORMS": "cpu",
    }
    return {name: value for name, value in os.environ.items() if name not in dropped} | own


@pytest.fixture(scope="module", params=LOOPS)
def serving(request: pytest.FixtureRequest, tiny_llama: Path, lab_env: dict[str, str]) -> Iterator[Kernel]:
    """A kernel that serves the tiny model on each loop in turn, with a training client of it."""
    with open_kernel(lab_env) as kernel:
        kernel.ok(SERVE.format(model=str(tiny_llama), port=free_port(), loop=request.param))
        kernel.loop = request.param  # type: ignore[attr-defined]
        yield kernel


@pytest.fixture(scope="module")
def kernel(lab_env: dict[str, str]) -> Iterator[Kernel]:
    """A kernel that has done nothing yet."""
    with open_kernel(lab_env) as fresh:
        yield fresh
