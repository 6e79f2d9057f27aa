"""Trainers in processes of their own, so that memory and threads of one are not those of another.

A process reads calls as JSON lines, ``{"call": "step", "work": {...}}``, and answers each with a JSON line:
``python -m benchmarks.worker txlab|peft --model NAME --dtype NAME [--compile-cache FOLDER]``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from benchmarks.measure import peak_gb
from benchmarks.workloads import Work

ROOT = Path(__file__).parent.parent


class Trainer(Protocol):
    """What is measured. Adapters of a work are made the first time that it is asked for, outside of the clock."""

    def warm_up(self, work: Work) -> None:
        """Do what only the first step of a work has to do."""

    def step(self, work: Work) -> dict[str, Any]:
        """One round; at least its ``seconds``, and its ``loss``, the sum over all tokens."""


class WorkerError(RuntimeError):
    """A worker's process ended before it answered."""


class Worker:
    """A trainer's process as its parent sees it; a context manager that ends it."""

    def __init__(self, kind: str, *options: str):
        self.kind = kind
        command = [sys.executable, "-m", "benchmarks.worker", kind, *options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def call(self, name: str, work: Work | None = None) -> Any:
        """The answer of a trainer's method. Raises WorkerError."""
        calls, answers = self._process.stdin, self._process.stdout
        assert calls is not None
        assert answers is not None
        with contextlib.suppress(BrokenPipeError):  # no answer comes, and the exit status says more
            print(json.dumps({"call": name} | ({"work": asdict(work)} if work else {})), file=calls, flush=True)
        answer = answers.readline()
        if not answer:
            status = self._process.wait()
            reason = " (killed, most likely for want of memory)" if status == -signal.SIGKILL else ""
            raise WorkerError(f"the {self.kind} process ended with status {status}{reason}")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()


def serve(trainer: Trainer, calls: TextIO, answers: TextIO) -> None:
    """Answer calls until they end."""
    for line in calls:
        call = json.loads(line)
        if call["call"] == "peak_gb":
            answer: Any = peak_gb()
        else:
            answer = getattr(trainer, call["call"])(*([Work(**call["work"])] if "work" in call else []))
        print(json.dumps(answer), file=answers, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve one trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("txlab", "peft"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--compile-cache", type=Path)
    args = parser.parse_args(arguments)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print
        serve(_trainer(args), sys.stdin, answers)


def _trainer(args: argparse.Namespace) -> Trainer:
    if args.kind == "peft":
        from benchmarks.peft_trainer import PeftTrainer

        return PeftTrainer(args.model, args.dtype)
    from benchmarks.txlab_trainer import TxlabTrainer

    return TxlabTrainer(args.model, args.dtype, args.compile_cache)


if __name__ == "__main__":
    main()
