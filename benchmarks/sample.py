"""Sampling speed: the lab's engine beside transformers' generate, in turn, in one run.

Prints a JSON line for each start, each row and each run of the trace as it comes, then tables. Each trainer has a
process of its own and the two never compute at the same time. benchmarks/README.md says how each figure is taken.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from benchmarks import command_line
from benchmarks.command_line import Peer, Setup, emit, positive, say
from benchmarks.report import Record
from benchmarks.sampling.report import (
    Measured,
    Round,
    record,
    rows_table,
    starts_table,
    trace_record,
    trace_table,
)
from benchmarks.sampling.trace import Trace
from benchmarks.sampling.workloads import Draw, Row, Span, rows
from benchmarks.worker import Worker

START, TRACE = "start", "trace"
TXLAB, PEER = "txlab-sampler", "transformers"  # kinds of workers
START_GOALS = {"cold": 15.0, "warm": 3.0}  # seconds
FIRST = Draw(1, 64, 1)
TRIES = 3  # at most, to come through without compiling


# --------------------------------------------------------------------------------------- starts


def measure_starts(setup: Setup) -> Iterator[Record]:
    """Seconds from the start of a process to the first token of its first request."""
    for name in ("cold", "warm"):  # the second finds the programs that the first compiled
        yield measure_start(name, lambda: setup.txlab(TXLAB))
    if setup.peer:
        yield measure_start(PEER, lambda: setup.peers(PEER))


def measure_start(name: str, start: Callable[[], Worker]) -> Record:
    """One of them: loading, to where requests are taken, and the first call."""
    began = time.perf_counter()
    with start() as worker:
        worker.call("peak_gb")
        loaded = time.perf_counter()
        worker.call("draw", FIRST)
        ended = time.perf_counter()
        compiles = worker.call("compiles") if name in START_GOALS else None
    return {
        START: name,
        "seconds": ended - began,
        "loading_s": loaded - began,
        "first_call_s": ended - loaded,
        "goal": START_GOALS.get(name),
        "compiles": compiles,
    }


# ----------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class Sides:
    """The processes that rows are measured with."""

    txlab: Worker
    peer: Peer
    seeds: Iterator[int] = field(default_factory=count)  # no prompt comes twice, so none is in the prefix cache

    def warm_up(self, row: Row) -> Measured:
        """Let both do what only the first time has to."""
        say(f"{row.name}: warming up")
        before = self.txlab.call("compiles")
        after = self._compile(row)
        if row.peer:
            self.peer.call("warm_up", self._fresh(row.span.whole))
        return Measured(row, {name: after[name] - before[name] for name in after})

    def take_round(self, measured: Measured) -> None:
        """Measure a row once more."""
        row = measured.row
        before, compiled = self.txlab.call("rates"), self.txlab.call("compiles")["programs"]
        span = self._with_seeds(row.span)
        ours = self._ours(span)
        theirs = self._theirs(span) if row.peer else self._sum(row.beside.values())
        measured.late_programs += self.txlab.call("compiles")["programs"] - compiled
        measured.rounds.append(Round(ours, theirs, (before, self.txlab.call("rates"))))
        measured.peak_gb = self.txlab.call("peak_gb")
        say(f"{row.name}: {ours['seconds']:.2f} s" + (f" beside {theirs['seconds']:.2f} s" if theirs else ""))

    def _compile(self, row: Row) -> Record:
        """Draw all of a row until nothing more is compiled: which programs it takes is the engine's choice."""
        compiles = self.txlab.call("compiles")
        for _ in range(TRIES):
            before = compiles
            for draw in (draw for span in row.spans for draw in span.draws):
                self.txlab.call("draw", self._fresh(draw))
            compiles = self.txlab.call("compiles")
            if compiles["programs"] == before["programs"]:
                break
        return compiles

    def _ours(self, span: Span) -> Record:
        whole, *before = (self.txlab.call("draw", draw) for draw in span.draws)
        return whole | {"seconds": whole["seconds"] - sum(draw["seconds"] for draw in before)}

    def _theirs(self, span: Span) -> Record | None:
        if span.before is None:
            return self.peer.call("prefill", span.whole)
        whole, before = self.peer.call("draw", span.whole), self.peer.call("draw", span.before)
        if whole is None or before is None:
            return None
        return whole | {"seconds": whole["seconds"] - before["seconds"]}

    def _sum(self, spans: Iterable[Span]) -> Record:
        return {"seconds": sum(self._ours(self._with_seeds(span))["seconds"] for span in spans)}

    def _with_seeds(self, span: Span) -> Span:
        return replace(span, whole=self._fresh(span.whole), before=span.before and self._fresh(span.before))

    def _fresh(self, draw: Draw) -> Draw:
        return replace(draw, seed=next(self.seeds))


def measure_rows(wanted: Sequence[Row], setup: Setup, repeat: int) -> Iterator[Record]:
    """The rows one after the other, ``repeat`` rounds of each."""
    with ExitStack() as stack:
        has_peer = setup.peer and any(row.peer for row in wanted)
        peer = Peer(stack.enter_context(setup.peers(PEER)) if has_peer else None)
        sides = Sides(stack.enter_context(setup.txlab(TXLAB)), peer)
        for row in wanted:
            measured = sides.warm_up(row)
            for _ in range(repeat):
                sides.take_round(measured)
            yield record(measured)


# ---------------------------------------------------------------------------------------- trace


def measure_trace(setup: Setup, trace: Trace, load: float, rate: float | None, repeat: int) -> Iterator[Record]:
    """Continuous and static batches with all requests there beforehand, then both in open loop, ``repeat`` times.

    Requests arrive at ``rate`` a second; without it at ``load`` times what continuous batching did of them beforehand
    while requests waited. A run that has to compile is taken again.
    """
    with setup.txlab(TXLAB) as worker:

        def run(played: Trace) -> Record:
            kind = "static" if played.static else "continuous"
            for _ in range(TRIES):
                line = {TRACE: kind, "rate": played.rate, **worker.call("trace", played)}
                say(f"trace, {kind}: {line['tokens_per_s']:.0f} tokens/s, {line['programs']} programs compiled")
                if not line["programs"]:
                    break
            return line

        beforehand = run(trace)
        yield beforehand
        yield run(replace(trace, static=True))
        mean_tokens = beforehand["new_tokens"] / trace.requests
        arriving = replace(trace, rate=rate or load * beforehand["busy_tokens_per_s"] / mean_tokens)
        for _ in range(repeat):
            for static in (False, True):
                yield run(replace(arriving, static=static))


# --------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = parse(arguments)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(args.model, args.dtype, Path(folder), args.peer)
        if START in args.rows:
            tables.append(starts_table([emit(line) for line in measure_starts(setup)]))
        if wanted := [row for row in rows() if row.name in args.rows]:
            tables.append(rows_table([emit(line) for line in measure_rows(wanted, setup, args.repeat)]))
        if TRACE in args.rows:
            runs = measure_trace(setup, Trace(args.requests), args.load, args.rate, max(1, args.repeat // 3))
            tables.append(trace_table(emit(trace_record([emit(line) for line in runs]))))
    for text in tables:
        print(f"\n{text}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    repeat = "rounds of a row, a third of it of the trace"
    parser = command_line.parser("benchmarks.sample", __doc__, repeat, peer="transformers")
    command_line.rows_option(parser, [START, *(row.name for row in rows()), TRACE])
    parser.add_argument(
        "--requests", type=positive, default=200, metavar="N", help="of the trace (default: %(default)s)"
    )
    parser.add_argument(
        "--load",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="arrivals of the trace, of what was done of them beforehand (default: %(default)s)",
    )
    parser.add_argument("--rate", type=float, metavar="HZ", help="arrivals of the trace a second, instead of --load")
    return command_line.parse(parser, arguments)


if __name__ == "__main__":
    main()
