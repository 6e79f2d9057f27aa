"""Training speed: the lab's engine beside transformers + PEFT, in turn, in one run.

Prints a JSON line for each start and each row as it comes, then tables. Every group of rows has two fresh processes,
one for each trainer, that never compute at the same time; how fast the machine was is measured before and after each
pair of steps. benchmarks/README.md says how each figure is taken.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import command_line
from benchmarks.command_line import Peer, Setup, emit, say
from benchmarks.report import Measured, Pair, Record, records, rows_table, starts_table
from benchmarks.worker import Worker
from benchmarks.workloads import LONG_TOKENS, Row, even, groups

START = "start"
NOBODY = Peer(None)


# ----------------------------------------------------------------------------------- measuring


def measure_starts(setup: Setup) -> Iterator[Record]:
    """Seconds from the start of a process to the end of its first step, of 8 x 64."""
    work = even(START, 8, 64)
    for name in ("cold", "warm"):  # the second finds the programs that the first compiled
        began = time.perf_counter()
        with setup.txlab("txlab") as worker:
            worker.call("step", work)
            seconds = time.perf_counter() - began
            yield {START: name, "seconds": seconds, "compiles": worker.call("compiles")}
    if setup.peer:
        began = time.perf_counter()
        with setup.peers("peft") as worker:
            worker.call("step", work)
            yield {START: "peft", "seconds": time.perf_counter() - began, "compiles": None}


def measure_group(rows: Sequence[Row], setup: Setup, repeat: int) -> list[Measured]:
    """Measure rows in turn, txlab and PEFT on the first, then both on the second, and all again ``repeat`` times.

    Groups with long rows are repeated a third as often, at least once.
    """
    if any(row.work.tokens > LONG_TOKENS for row in rows):
        repeat = max(1, repeat // 3)
    with ExitStack() as stack:
        txlab = stack.enter_context(setup.txlab("txlab"))
        peft = Peer(stack.enter_context(setup.peers("peft")) if setup.peer and any(row.peer for row in rows) else None)
        group = [warm_up(row, txlab, peft if row.peer else NOBODY) for row in rows]
        for _ in range(repeat):
            for measured in group:
                take_pair(measured, txlab, peft if measured.row.peer else NOBODY)
    return group


def warm_up(row: Row, txlab: Worker, peft: Peer) -> Measured:
    """Let both trainers do what only the first step has to."""
    say(f"{row.name}: warming up")
    before = txlab.call("compiles")
    txlab.call("warm_up", row.work)
    peft.call("warm_up", row.work)
    after = txlab.call("compiles")
    return Measured(row, txlab.call("flops", row.work), {name: after[name] - before[name] for name in after})


def take_pair(measured: Measured, txlab: Worker, peft: Peer) -> None:
    """Measure a row once more."""
    row = measured.row
    before = txlab.call("rates")
    ours, theirs = txlab.call("step", row.work), peft.call("step", row.work)
    measured.pairs.append(Pair(ours, theirs, (before, txlab.call("rates"))))
    measured.peak_gb, measured.peft_peak_gb = txlab.call("peak_gb"), peft.call("peak_gb")
    say(f"{row.name}: {ours['seconds']:.2f} s" + (f", PEFT {theirs['seconds']:.2f} s" if theirs else ""))


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
    repeat = f"repetitions of a row, a third of it where a row has more than {LONG_TOKENS} tokens"
    parser = command_line.parser("benchmarks.train", __doc__, repeat, peer="PEFT")
    names = [START, *(row.name for group in groups() for row in group)]
    command_line.rows_option(parser, names, ", with the rows whose cost it is compared with")
    return command_line.parse(parser, arguments)


def chosen(names: Sequence[str]) -> list[tuple[Row, ...]]:
    """Groups of the named rows and of those that these are compared with."""
    found = []
    for group in groups():
        wanted = {row.name for row in group if row.name in names}
        wanted |= {reference for row in group if row.name in wanted for reference in row.cost_of}
        found.append(tuple(row for row in group if row.name in wanted))
    return [group for group in found if group]


if __name__ == "__main__":
    main()
