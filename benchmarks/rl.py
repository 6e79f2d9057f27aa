"""Reinforcement learning: rounds of GRPO through the real SDK, beside transformers.generate + PEFT, in turn.

Prints a JSON line for each repetition as it comes and one for all, then a table. benchmarks/README.md says how each
figure is taken.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from statistics import median

from benchmarks.grpo import Grpo
from benchmarks.measure import table
from benchmarks.report import Record, bound, whole
from benchmarks.train import emit, positive, say
from benchmarks.worker import Worker
from txlab.config import DEFAULT_MODEL

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
    options = "--model", args.model, "--dtype", args.dtype
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        txlab = stack.enter_context(Worker("txlab-grpo", *options, "--compile-cache", folder))
        peft = stack.enter_context(Worker("peft-grpo", *options)) if args.peer else None
        rounds = [emit(line) for line in measure(txlab, peft, args.repeat)]
    print(f"\n{as_table(emit(summary(rounds, Grpo())))}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl", description=__doc__)
    parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="rounds of each (default: %(default)s)")
    parser.add_argument(
        "--no-peer", dest="peer", action="store_false", help="leave PEFT out, which needs the parity extra"
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="base model (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", metavar="TYPE", help="of its weights (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.peer and not all(map(importlib.util.find_spec, ("torch", "peft"))):
        parser.error('PEFT is missing: pip install -e ".[parity]", or leave it out with --no-peer')
    return args


if __name__ == "__main__":
    main()
