"""Training speed: the lab's engine beside transformers + PEFT, in turn, in one run.

Prints a JSON line for each start and each row as it comes, then tables. Every group of rows has two fresh processes,
one for each trainer, that never compute at the same time; how fast the machine was is measured before and after each
pair of steps. benchmarks/README.md says how each figure is taken.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Measured, Pair, Record, records, rows_table, starts_table
from benchmarks.worker import Worker, WorkerError
from benchmarks.workloads import LONG_TOKENS, Row, even, groups
from txlab.config import DEFAULT_MODEL

START = "start"


@dataclass(frozen=True, slots=True)
class Setup:
    """What all processes of a run share."""

    model: str
    dtype: str
    compile_cache: Path
    peer: bool

    def txlab(self) -> Worker:
        """A fresh process of the lab's engine."""
        return Worker("txlab", *self._options, "--compile-cache", str(self.compile_cache))

    def peft(self) -> Worker:
        """A fresh process of the peer."""
        return Worker("peft", *self._options)

    @property
    def _options(self) -> tuple[str, ...]:
        return "--model", self.model, "--dtype", self.dtype


class Peer:
    """A peer that may be missing, or end early, as one that needs more memory than there is: it then says None."""

    def __init__(self, worker: Worker | None):
        self._worker = worker

    def call(self, name: str, row: Row) -> Any:
        """What ``Worker.call`` answers about a row, None where the peer does not do it."""
        if self._worker is None or not row.peer:
            return None
        try:
            return self._worker.call(name, row.work)
        except WorkerError as error:
            say(f"{row.name}: {error}; going on without it")
            self._worker = None
            return None


# ----------------------------------------------------------------------------------- measuring


def measure_starts(setup: Setup) -> Iterator[Record]:
    """Seconds from the start of a process to the end of its first step, of 8 x 64."""
    work = even(START, 8, 64)
    for name in ("cold", "warm"):  # the second finds the programs that the first compiled
        began = time.perf_counter()
        with setup.txlab() as worker:
            worker.call("step", work)
            seconds = time.perf_counter() - began
            yield {START: name, "seconds": seconds, "compiles": worker.call("compiles")}
    if setup.peer:
        began = time.perf_counter()
        with setup.peft() as worker:
            worker.call("step", work)
            yield {START: "peft", "seconds": time.perf_counter() - began, "compiles": None}


def measure_group(rows: Sequence[Row], setup: Setup, repeat: int) -> list[Measured]:
    """Measure rows in turn, txlab and PEFT on the first, then both on the second, and all again ``repeat`` times.

    Groups with long rows are repeated a third as often, at least once.
    """
    if any(row.work.tokens > LONG_TOKENS for row in rows):
        repeat = max(1, repeat // 3)
    with ExitStack() as stack:
        txlab = stack.enter_context(setup.txlab())
        peft = Peer(stack.enter_context(setup.peft()) if setup.peer and any(row.peer for row in rows) else None)
        group = [warm_up(row, txlab, peft) for row in rows]
        for _ in range(repeat):
            for measured in group:
                take_pair(measured, txlab, peft)
    return group


def warm_up(row: Row, txlab: Worker, peft: Peer) -> Measured:
    """Let both trainers do what only the first step has to."""
    say(f"{row.name}: warming up")
    before = txlab.call("compiles")
    txlab.call("warm_up", row.work)
    peft.call("warm_up", row)
    after = txlab.call("compiles")
    return Measured(row, txlab.call("flops", row.work), {name: after[name] - before[name] for name in after})


def take_pair(measured: Measured, txlab: Worker, peft: Peer) -> None:
    """Measure a row once more."""
    row = measured.row
    before = txlab.call("rates")
    ours, theirs = txlab.call("step", row.work), peft.call("step", row)
    measured.pairs.append(Pair(ours, theirs, (before, txlab.call("rates"))))
    measured.peak_gb, measured.peft_peak_gb = txlab.call("peak_gb"), peft.call("peak_gb", row)
    say(f"{row.name}: {ours['seconds']:.2f} s" + (f", PEFT {theirs['seconds']:.2f} s" if theirs else ""))


def say(progress: str) -> None:
    """Tell whoever waits; figures go to stdout."""
    print(progress, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(args.model, args.dtype, Path(folder), args.peer)
        starts = [emit(line) for line in measure_starts(setup)] if START in args.rows else []
        rows = [emit(line) for group in chosen(args.rows) for line in records(measure_group(group, setup, args.repeat))]
    if starts:
        print(f"\n{starts_table(starts)}")
    if rows:
        print(f"\n{rows_table(rows)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    names = [START, *(row.name for group in groups() for row in group)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=names,
        default=names,
        metavar="ROW",
        help=f"what to measure, with the rows whose cost it is compared with (default: all of {', '.join(names)})",
    )
    parser.add_argument(
        "--repeat",
        type=positive,
        default=3,
        metavar="N",
        help=f"repetitions of a row, a third of it where a row has more than {LONG_TOKENS} tokens (default: 3)",
    )
    parser.add_argument(
        "--no-peer", dest="peer", action="store_false", help="leave PEFT out, which needs the parity extra"
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="base model (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", metavar="TYPE", help="of its weights (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.peer and not all(map(importlib.util.find_spec, ("torch", "peft"))):
        parser.error('PEFT is missing: pip install -e ".[parity]", or leave it out with --no-peer')
    return args


def positive(text: str) -> int:
    """A whole number from 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def chosen(names: Sequence[str]) -> list[tuple[Row, ...]]:
    """Groups of the named rows and of those that these are compared with."""
    found = []
    for group in groups():
        wanted = {row.name for row in group if row.name in names}
        wanted |= {reference for row in group if row.name in wanted for reference in row.cost_of}
        found.append(tuple(row for row in group if row.name in wanted))
    return [group for group in found if group]


def emit(line: Record) -> Record:
    """Print a record at once; returns it."""
    print(json.dumps(line), flush=True)
    return line


if __name__ == "__main__":
    main()
