"""What the benchmarks' command lines share: options, processes of both sides, and how they report."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Record
from benchmarks.worker import Worker, WorkerError
from txlab.config import DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class Setup:
    """What all processes of a run share."""

    model: str
    dtype: str
    compile_cache: Path
    peer: bool

    def txlab(self, kind: str) -> Worker:
        """A fresh process of the lab's."""
        return Worker(kind, *self._options, "--compile-cache", str(self.compile_cache))

    def peers(self, kind: str) -> Worker:
        """A fresh process of the peer."""
        return Worker(kind, *self._options)

    @property
    def _options(self) -> tuple[str, ...]:
        return "--model", self.model, "--dtype", self.dtype


class Peer:
    """The peer, which may be missing, or end early, as one that needs more memory than there is: it then says None."""

    def __init__(self, worker: Worker | None):
        self._worker = worker

    def call(self, name: str, work: Any = None) -> Any:
        """What ``Worker.call`` answers."""
        if self._worker is None:
            return None
        try:
            return self._worker.call(name, work)
        except WorkerError as error:
            say(f"{error}; going on without it")
            self._worker = None
            return None


def parser(module: str, doc: str | None, repeat: str, peer: str | None = None) -> argparse.ArgumentParser:
    """With the options of every benchmark; ``repeat`` says of what there are repetitions, ``peer`` who it is."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    made.add_argument("--repeat", type=positive, default=3, metavar="N", help=f"{repeat} (default: %(default)s)")
    if peer is not None:
        made.add_argument(
            "--no-peer", dest="peer", action="store_false", help=f"leave {peer} out, which needs the parity extra"
        )
    made.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="base model (default: %(default)s)")
    made.add_argument("--dtype", default="float32", metavar="TYPE", help="of its weights (default: %(default)s)")
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for; an error at once where the peer is wanted and not installed."""
    args = made.parse_args(arguments)
    if getattr(args, "peer", False) and not all(map(importlib.util.find_spec, ("torch", "peft"))):
        made.error('the peer is not installed: pip install -e ".[parity]", or leave it out with --no-peer')
    return args


def rows_option(made: argparse.ArgumentParser, names: Sequence[str], more: str = "") -> None:
    """``--rows``: some of what can be measured."""
    help_text = f"what to measure{more} (default: all of {', '.join(names)})"
    made.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=help_text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def say(progress: str) -> None:
    """Tell whoever waits; figures go to stdout."""
    print(progress, file=sys.stderr, flush=True)


def emit(line: Record) -> Record:
    """Print a record at once; returns it."""
    print(json.dumps(line), flush=True)
    return line
