"""A step of a tiny model, timed and taken apart, through the command line and through an engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from txlab import cli
from txlab.config import EngineSettings, ModelSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.requests import RequestError
from txlab.models.base import load_base
from txlab.profiling.bench import run_bench
from txlab.profiling.kinds import Kind
from txlab.profiling.profile import run_profile
from txlab.profiling.workload import StepShape

SMALL = ("--rows", "2", "--length", "16", "--rank", "4")


@pytest.fixture(scope="module")
def bus() -> EventBus:
    return EventBus()


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, bus: EventBus) -> Iterator[Engine]:
    engine = Engine(load_base(ModelSettings(name=str(tiny_llama))), EngineSettings(compile_cache=None), bus)
    engine.start()
    yield engine
    engine.stop()


def test_profile_prints_every_section(tiny_llama: Path, tmp_path: Path) -> None:
    """In a process of its own: where another test turned the compilation cache on, programs may go by other ids."""
    keep = tmp_path / "trace"
    options = (str(tiny_llama), *SMALL, "--profile", "--keep", str(keep))
    command = [sys.executable, "-m", "txlab.cli", "bench", *options]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TXLAB_CACHE": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for section in ("tokens/s", "FLOPs counted", "matmul, XLA", "matmul, NumPy", "padding", "FLOPs computed"):
        assert section in text
    for part in (*Kind, "host: nothing ran", "gaps between operations", "op_name"):
        assert part in text
    assert "nan" not in text
    padding = re.search(r"padding +[0-9.]+% of (\d+) positions", text)
    assert padding is not None
    assert int(padding[1]) >= 2 * 16
    computed = re.search(r"matrix products, ([0-9.]+) x counted", text)
    assert computed is not None
    assert float(computed[1]) >= 0.8
    assert list(keep.rglob("*.xplane.pb"))


def test_bench_prints_the_rates_alone(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(tiny_llama), *SMALL]) == 0
    text = capsys.readouterr().out
    assert "2 x 16 tokens, rank 4" in text
    assert "tokens/s" in text
    assert "op_name" not in text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--rows", "0"), "rows is 0: expected at least 1"),
        (("--length", "513"), "length is 513: expected 1 to 512"),
        (("--rank", "-1"), "rank is -1: expected 1 to"),
    ],
)
def test_a_step_that_cannot_be(
    tiny_llama: Path, option: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(tiny_llama), *option]) == 1
    assert message in capsys.readouterr().err


def test_the_step_is_the_whole_training(engine: Engine) -> None:
    profile = run_profile(engine, StepShape(4, 32, rank=8))
    assert sum(profile.kinds.values()) + sum(profile.gaps) == pytest.approx(profile.seconds)
    assert profile.kinds[Kind.MATMUL] > 0
    assert profile.kinds[Kind.OPTIMIZER] > 0


def test_the_adapter_is_gone_afterwards(engine: Engine, bus: EventBus) -> None:
    run_bench(engine, StepShape(1, 16, rank=4))
    adapter = bus.view().adapters[-1]
    assert (adapter.name, adapter.rank, adapter.state) == ("bench", 4, "unloaded")
    assert adapter.step > 1


def test_what_the_engine_refuses_is_told(engine: Engine) -> None:
    with pytest.raises(RequestError, match="rank is 1000: expected 1 to 256"):
        run_bench(engine, StepShape(rank=1000))
