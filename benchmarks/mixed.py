"""Training and sampling together in one engine: what a short sample waits, and what training loses to samples.

Prints a JSON line for each repetition as it comes and one for each share of sampling, then a table.
benchmarks/README.md says how each figure is taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from statistics import median

import numpy as np

from benchmarks import command_line
from benchmarks.command_line import emit, positive, say
from benchmarks.measure import table
from benchmarks.mixed_measure import WORK, Part, Subject, measure, warm_up
from benchmarks.report import Record, bound, whole
from txlab.config import EngineSettings, ModelSettings
from txlab.models.base import load_base

LEAST_TRAINING = 0.7  # of the lone rate, under light sampling


# ----------------------------------------------------------------------------------------- report


def record(share: float, parts: Sequence[Part]) -> Record:
    """Figures of one share."""
    alone = median(s for part in parts for s in part.sample)
    micro_batch = median(part.micro_batch for part in parts)
    waited = [s for part in parts for s in part.waited]
    limit = 2 * alone + micro_batch
    return {
        "share": share,
        "sample_s": alone,
        "micro_batch_s": micro_batch,
        "limit_s": limit,
        "beside_training": {
            "median_s": median(waited),
            "p95_s": float(np.quantile(waited, 0.95)),
            "median_of_limit": median(waited) / limit,
            "p95_of_limit": float(np.quantile(waited, 0.95)) / limit,
            "goal": 1.0,
        },
        "training": {
            "tokens_per_s": WORK.tokens / median(part.round for part in parts),
            "light_tokens_per_s": WORK.tokens / median(part.light_round for part in parts),
            "ratio": median(part.round / part.light_round for part in parts),
            "goal": LEAST_TRAINING,
            "light_sample_s": median(s for part in parts for s in part.light),
            "light_samples": sum(len(part.light) for part in parts),
        },
        "programs": sum(part.programs for part in parts),
        "matmul_gflops": [part.gflops for part in parts],
    }


def as_table(lines: Sequence[Record]) -> str:
    """Records as text."""
    header = ("share", "sample s", "micro-batch s", "limit s", "median s", "p95 s", "of limit", "goal")
    header += ("train tok/s", "light tok/s", "ratio", "goal", "light sample s")
    return table(header, [cells(line, line["beside_training"], line["training"]) for line in lines])


def cells(line: Record, beside: Record, training: Record) -> tuple[str | float | None, ...]:
    """Cells of one row."""
    return (
        f"{line['share']:.2f}",
        *(line[name] for name in ("sample_s", "micro_batch_s", "limit_s")),
        *(beside[name] for name in ("median_s", "p95_s", "p95_of_limit")),
        bound("≤", beside["goal"]),
        *(whole(training[name]) for name in ("tokens_per_s", "light_tokens_per_s")),
        training["ratio"],
        bound("≥", training["goal"]),
        training["light_sample_s"],
    )


# ----------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all shares in turn, and print."""
    args = parse(arguments)
    base = load_base(ModelSettings(name=args.model, dtype=args.dtype))
    with ExitStack() as stack:
        subjects = [Subject(base, share) for share in args.share]
        for subject in subjects:
            stack.callback(subject.stop)
            say(f"share {subject.share}: warming up")
            warm_up(subject)
        parts: dict[Subject, list[Part]] = {subject: [] for subject in subjects}
        for _ in range(args.repeat):
            for subject, own in parts.items():
                own.append(measure(subject, args.samples, args.rounds))
                emit({"share": subject.share, "repetition": asdict(own[-1])})
    lines = [emit(record(subject.share, own)) for subject, own in parts.items()]
    print(f"\n{as_table(lines)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    share = EngineSettings().sample_share
    parser = command_line.parser("benchmarks.mixed", __doc__, "repetitions")
    parser.add_argument(
        "--share",
        nargs="+",
        type=float,
        default=[share],
        metavar="SHARE",
        help="of device time that sampling gets while both have work; a row for each (default: %(default)s)",
    )
    parser.add_argument(
        "--samples", type=positive, default=20, metavar="N", help="alone and beside training (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=6, metavar="N", help="of training that are timed (default: %(default)s)"
    )
    return command_line.parse(parser, arguments)


if __name__ == "__main__":
    main()
