"""What is measured in processes of their own, so that memory and threads of one are not those of another.

A process reads calls as JSON lines, ``{"call": "step", "work": {...}}``, and answers each with a JSON line:
``python -m benchmarks.worker KIND --model NAME --dtype NAME [--compile-cache FOLDER]``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TextIO, get_type_hints

from benchmarks.measure import peak_gb

ROOT = Path(__file__).parent.parent
KINDS = {
    "txlab": "benchmarks.txlab_trainer:TxlabTrainer",
    "peft": "benchmarks.peft_trainer:PeftTrainer",
    "txlab-sampler": "benchmarks.sampling.txlab_sampler:TxlabSampler",
    "transformers": "benchmarks.sampling.transformers_sampler:TransformersSampler",
    "txlab-grpo": "benchmarks.txlab_grpo:TxlabGrpo",
    "peft-grpo": "benchmarks.peft_grpo:PeftGrpo",
}


class WorkerError(RuntimeError):
    """A worker's process ended before it answered."""


class Worker:
    """A process as its parent sees it; a context manager that ends it."""

    def __init__(self, kind: str, *options: str):
        self.kind = kind
        command = [sys.executable, "-m", "benchmarks.worker", kind, *options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def call(self, name: str, work: Any = None) -> Any:
        """The answer of a method, which takes no argument or a ``work``, a flat dataclass. Raises WorkerError."""
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


def serve(measured: object, calls: TextIO, answers: TextIO) -> None:
    """Answer calls until they end; a method's annotation says of which type its ``work`` is."""
    for line in calls:
        call = json.loads(line)
        if call["call"] == "peak_gb":
            answer: Any = peak_gb()
        else:
            method = getattr(measured, call["call"])
            answer = method(*([get_type_hints(method)["work"](**call["work"])] if "work" in call else []))
        print(json.dumps(answer), file=answers, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--compile-cache", type=Path)
    args = parser.parse_args(arguments)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print
        serve(_measured(args), sys.stdin, answers)


def _measured(args: argparse.Namespace) -> object:
    """Of the kind that is asked for. Nobody imports what another kind needs."""
    module, name = KINDS[args.kind].split(":")
    options = {} if args.compile_cache is None else {"compile_cache": args.compile_cache}
    return getattr(importlib.import_module(module), name)(args.model, args.dtype, **options)


if __name__ == "__main__":
    main()
