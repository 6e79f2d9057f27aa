"""Reinforcement learning: rounds of GRPO through the real SDK, beside transformers.generate + PEFT, in turn.

Prints a JSON line for each repetition as it comes and one for all, then a table. benchmarks/README.md says how each
figure is taken.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks import command_line
from benchmarks.command_line import Setup, emit, say
from benchmarks.grpo import Grpo
from benchmarks.measure import table
from benchmarks.report import Record, bound, whole
from benchmarks.worker import Worker

PHASES = ("sample", "reward", "train", "snapshot")
LEAST_RATIO = 2.0  # to the peer
MOST_OUTSIDE = 0.1  # share of a round in which the engine computes nothing


def measure(txlab: Worker, peft: Worker | None, repeat: int) -> Iterator[Record]:
    """Rounds of both in turn, warmed up."""
    for worker in (txlab, peft):
        if worker is not None:
            say(f"{worker.kind}: warming up")
            worker.call("warm_up")
    for number in range(repeat):
        before = txlab.call("rates")
        ours, theirs = txlab.call("round"), peft and peft.call("round")
        yield {"round": number, "txlab": ours, "peft": theirs, "matmul_gflops": [before, txlab.call("rates")]}


def summary(rounds: Sequence[Record], work: Grpo) -> Record:
    """Medians of all rounds, and what they are compared with."""
    ours = [line["txlab"] for line in rounds]
    theirs = [line["peft"] for line in rounds if line["peft"]]
    return {
        "txlab": side(ours, work),
        "peft": side(theirs, work) if theirs else None,
        "ratio": median(t["seconds"] / o["seconds"] for o, t in zip(ours, theirs, strict=True)) if theirs else None,
        "goal": LEAST_RATIO,
        "outside": median(1 - one["busy"] / one["seconds"] for one in ours),
        "outside_goal": MOST_OUTSIDE,
    }


def side(rounds: Sequence[Record], work: Grpo) -> Record:
    """Figures of one side; speeds in tokens/s of their phase."""
    phases = {name: median(one["phases"][name] for one in rounds) for name in rounds[0]["phases"]}
    return {
        "seconds": median(one["seconds"] for one in rounds),
        "phases": phases,
        "sampled_per_s": work.sampled / phases["sample"],
        "trained_per_s": work.trained / phases["train"],
        "reward": [one["reward"] for one in rounds],
    }


def as_table(line: Record) -> str:
    """The summary as text."""
    header = ("", *(f"{name} s" for name in PHASES), "round s", "sampled tok/s", "trained tok/s", "outside")
    rows = [("txlab", *cells(line["txlab"]), line["outside"])]
    if line["peft"]:
        rows.append(("transformers + PEFT", *cells(line["peft"]), None))
        rows.append(("ratio", *ratios(line), line["ratio"], None, None, None))
    blank = (None,) * len(PHASES)
    rows.append(("goal", *blank, bound("≥", line["goal"]), None, None, bound("≤", line["outside_goal"])))
    return table(header, rows)


def cells(figures: Record) -> tuple[str | float | None, ...]:
    """Cells of one side."""
    phases = (figures["phases"].get(name) for name in PHASES)
    return *phases, figures["seconds"], whole(figures["sampled_per_s"]), whole(figures["trained_per_s"])


def ratios(line: Record) -> Iterator[float | None]:
    """How many times the peer's seconds are txlab's, by phase; None for what the peer does not have."""
    ours, theirs = line["txlab"]["phases"], line["peft"]["phases"]
    return (theirs[name] / ours[name] if name in theirs else None for name in PHASES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = parse(arguments)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        setup = Setup(args.model, args.dtype, Path(folder), args.peer)
        txlab = stack.enter_context(setup.txlab("txlab-grpo"))
        peft = stack.enter_context(setup.peers("peft-grpo")) if setup.peer else None
        rounds = [emit(line) for line in measure(txlab, peft, args.repeat)]
    print(f"\n{as_table(emit(summary(rounds, Grpo())))}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    return command_line.parse(command_line.parser("benchmarks.rl", __doc__, "rounds of each", peer="PEFT"), arguments)


if __name__ == "__main__":
    main()
