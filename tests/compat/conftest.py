"""A folder in which the cookbook finds its models and data by name, and a server of that folder's model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny import make_tiny
from tests.server.conftest import Running, serve
from txlab.config import EngineSettings, ModelSettings, ServerSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.models.base import load_base

MODEL = "Qwen/Qwen3-8B-Base"  # a name for which the cookbook knows a renderer that any tokenizer can follow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose subfolders go before the hub's models and datasets of the same names."""
    folder = tmp_path_factory.mktemp("cookbook")
    make_tiny(folder / MODEL, tie_word_embeddings=False, max_position_embeddings=4096)
    questions = [(a, b) for a in range(0, 96, 12) for b in range(0, 96, 12)]
    _dataset(folder / "HuggingFaceH4/no_robots", [_sum(a, b) for a, b in questions])
    _dataset(folder / "allenai/tulu-3-sft-mixture", [_sum(a, b) for a, b in questions])
    sums = [{"question": f"What is {a} + {b}?", "answer": f"#### {a + b}"} for a, b in questions]
    _dataset(folder / "openai/gsm8k", sums, config="main")
    _dataset(folder / "Anthropic/hh-rlhf", [_preference(f"Is {a} odd?", "Yes.", "No!") for a, _ in questions])
    return folder


def _sum(a: int, b: int) -> dict[str, Any]:
    """A conversation as the arithmetic environment begins it; half of its answers are short."""
    turns = ["What is 4 + 5?", "9", f"What is {a} + {b}?", f"{a + b}" if (a + b) % 24 else "Let me think for a while."]
    roles = ["user", "assistant"] * 2
    return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]}


def _preference(question: str, chosen: str, rejected: str) -> dict[str, str]:
    prompt = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": prompt + chosen, "rejected": prompt + rejected}


def _dataset(folder: Path, rows: Iterable[dict[str, Any]], config: str = "default") -> None:
    """A dataset with the splits train and test, as ``datasets.load_dataset`` reads a folder."""
    folder.mkdir(parents=True)
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(lines)
    files = [{"split": split, "path": f"{split}.jsonl"} for split in ("train", "test")]
    head = json.dumps({"configs": [{"config_name": config, "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{head}\n---\n")  # YAML, which JSON is, too


@pytest.fixture(scope="module")
def lab(workspace: Path) -> Iterator[Running]:
    """The real engine on the tiny model, served under a name that the cookbook knows."""
    base = replace(load_base(ModelSettings(name=str(workspace / MODEL))), name=MODEL)
    engine = Engine(base, EngineSettings(train_tokens=512, sample_rows=32, decode_steps=4), EventBus())
    engine.start()
    with serve(engine, workspace / "store", ServerSettings()) as running:
        yield running
    engine.stop()


@dataclass(frozen=True)
class Run:
    """What a recipe left in its log folder."""

    log_path: Path

    def metrics(self, key: str) -> list[float]:
        """The values of ``key``, a step each."""
        rows = self._rows("metrics.jsonl")
        return [row[key] for row in rows if key in row]

    def checkpoints(self) -> list[dict[str, Any]]:
        """What the recipe saved, in order."""
        return self._rows("checkpoints.jsonl")

    def forget_checkpoint(self, name: str) -> None:
        """As if the recipe had been killed before it saved ``name``."""
        kept = [row for row in self.checkpoints() if row["name"] != name]
        (self.log_path / "checkpoints.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))

    def _rows(self, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.log_path / file).read_text().splitlines()]


@dataclass(frozen=True)
class Cookbook:
    """Runs the cookbook's programs as a user does: from a shell, without touching them."""

    workspace: Path
    lab: Running

    def run(self, recipe: str, log: str, *arguments: str) -> Run:
        """``python -m tinker_cookbook.recipes.RECIPE``; fails with what it printed unless it ends well."""
        log_path = self.workspace / "runs" / log
        self.python(*self._line(recipe, log_path), *arguments)
        return Run(log_path)

    def refused(self, recipe: str, log: str, *arguments: str) -> str:
        """Output of a recipe that must fail; the test fails where it ends well."""
        ended = self._start(*self._line(recipe, self.workspace / "runs" / log), *arguments)
        assert ended.returncode != 0, ended.stdout[-5000:]
        return ended.stdout

    def python(self, *arguments: str) -> None:
        """Run Python in the workspace, with the lab's address in its environment."""
        ended = self._start(*arguments)
        assert ended.returncode == 0, ended.stdout[-5000:]

    def _line(self, recipe: str, log_path: Path) -> tuple[str, ...]:
        return "-m", f"tinker_cookbook.recipes.{recipe}", f"model_name={MODEL}", f"log_path={log_path}"

    def _start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.workspace,
            env=os.environ | self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )

    def checkpoint_names(self, path: str) -> set[str]:
        """What the server still has of the run that saved ``path``."""
        run_id = path.removeprefix("tinker://").split("/")[0]
        listed = self.lab.get(f"training_runs/{run_id}/checkpoints").json()["checkpoints"]
        return {checkpoint["checkpoint_id"] for checkpoint in listed}

    def _environment(self) -> dict[str, str]:
        return {
            "TINKER_BASE_URL": self.lab.url,
            "TINKER_API_KEY": self.lab.key,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.workspace / "datasets-cache"),
            "TOKENIZERS_PARALLELISM": "false",
        }


@pytest.fixture(scope="module")
def cookbook(workspace: Path, lab: Running) -> Cookbook:
    return Cookbook(workspace, lab)
