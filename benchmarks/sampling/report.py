"""What ``benchmarks/sample.py`` says of what it measured: a JSON record per row, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from benchmarks.measure import table
from benchmarks.report import Record, bound, compile_cells, whole
from benchmarks.sampling.workloads import Row

THROUGHPUT_GOAL = 2.5  # of continuous batches to static ones


@dataclass(frozen=True, slots=True)
class Round:
    """One repetition of a row: ``seconds`` of its span and of what it is beside, the matmul rates before and after."""

    ours: Record
    theirs: Record | None
    rates: tuple[Record, Record]


@dataclass(slots=True)
class Measured:
    """All that was measured of a row."""

    row: Row
    compiles: Record  # while it warmed up
    rounds: list[Round] = field(default_factory=list)
    late_programs: int = 0  # compiled after that: none, or figures are too low
    peak_gb: float | None = None


def record(measured: Measured) -> Record:
    """Figures of a row; speeds in tokens/s of its span, rates in GFLOP/s, memory in 10^9 bytes."""
    row, rounds = measured.row, measured.rounds
    both = [(r.ours, r.theirs) for r in rounds if r.theirs]
    ours = speeds(row.span.tokens, [r.ours for r in rounds])
    theirs = speeds(row.span.tokens, [theirs for _, theirs in both]) if both else None
    rates = [rate for r in rounds for rate in r.rates]
    return {
        "row": row.name,
        "tokens": row.span.tokens,
        "txlab": ours | {"peak_gb": measured.peak_gb},
        "beside": " + ".join(row.beside) or "transformers",
        "other": theirs,
        "ratio": ours["tokens_per_s"] / theirs["tokens_per_s"] if theirs else None,
        "pair_ratio": median(theirs["seconds"] / ours["seconds"] for ours, theirs in both) if both else None,
        "goal": row.goal,
        "cost": median(ours["seconds"] / theirs["seconds"] for ours, theirs in both) if row.cost_goal else None,
        "cost_goal": row.cost_goal,
        "same": agreement(*both[0]) if both and row.peer else None,
        "cached": [r.ours["cached"] for r in rounds],
        "matmul_gflops": {name: median(rate[name] for rate in rates) for name in rates[0]} | {"all": rates},
        "compiles": measured.compiles,
        "late_programs": measured.late_programs,
    }


def speeds(tokens: int, takes: Sequence[Record]) -> Record:
    """Figures of one side."""
    seconds = [take["seconds"] for take in takes]
    return {
        "seconds": seconds,
        "tokens_per_s": tokens / median(seconds),
        "best_tokens_per_s": tokens / min(seconds),
    }


def agreement(ours: Record, theirs: Record) -> float:
    """Share of tokens that both drew alike: whether both did the same work. A near tie parts two texts for good."""
    return float(np.mean(np.array(ours["tokens"]) == np.array(theirs["tokens"])))


def trace_record(lines: Sequence[Record]) -> Record:
    """Medians of a trace's runs: ``open`` loop, and with all requests there ``beforehand``."""
    record: Record = {"row": "trace", "goal": THROUGHPUT_GOAL}
    for name, is_open in (("beforehand", False), ("open", True)):
        runs = [line for line in lines if (line["rate"] is not None) == is_open]
        sides = {kind: [run for run in runs if run["trace"] == kind] for kind in ("continuous", "static")}
        pairs = zip(sides["continuous"], sides["static"], strict=True)
        record[name] = {
            **{kind: _middle(runs) for kind, runs in sides.items()},
            "ratio": median(ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in pairs),
        }
    return record


def _middle(runs: Sequence[Record]) -> Record:
    return {
        "rate": runs[0]["rate"],
        "tokens_per_s": median(run["tokens_per_s"] for run in runs),
        "first_token_s": {p: median(run["first_token_s"][p] for run in runs) for p in ("p50", "p95")},
        "programs": sum(run["programs"] for run in runs),
    }


# ------------------------------------------------------------------------------------- tables


def starts_table(lines: Sequence[Record]) -> str:
    """Records of starts as text."""
    header = ("start", "s to first token", "goal", "loading", "first call", "programs", "from cache", "compile s")
    return table(header, [_start_cells(line) for line in lines])


def rows_table(lines: Sequence[Record]) -> str:
    """Records of rows as text."""
    figures = ("txlab tok/s", "best", "beside", "tok/s", "best")
    header = ("row", *figures, "ratio", "goal", "cost", "goal", "same", "programs", "GFLOP/s")
    return table(header, [_row_cells(line) for line in lines])


def trace_table(line: Record) -> str:
    """The record of a trace as text."""
    header = ("trace", "arrivals/s", "tok/s", "p50 s", "p95 s", "ratio", "goal", "programs")
    return table(
        header,
        [
            (f"{name}, {kind}", *_trace_cells(line[name][kind]), *compared, str(line[name][kind]["programs"]))
            for name in ("beforehand", "open")
            for kind, compared in (
                ("continuous", (line[name]["ratio"], bound("≥", line["goal"]))),
                ("static", (None, None)),
            )
        ],
    )


def _start_cells(line: Record) -> tuple[str | float | None, ...]:
    parts = line["loading_s"], line["first_call_s"]
    return line["start"], line["seconds"], bound("≤", line["goal"]), *parts, *compile_cells(line["compiles"])


def _row_cells(line: Record) -> tuple[str | float | None, ...]:
    ours, theirs = (
        [whole(side.get(name)) for name in ("tokens_per_s", "best_tokens_per_s")]
        for side in (line["txlab"], line["other"] or {})
    )
    return (
        *(line["row"], *ours, line["beside"], *theirs),
        *(line["ratio"], bound("≥", line["goal"]), line["cost"], bound("≤", line["cost_goal"]), line["same"]),
        str(line["late_programs"]),
        whole(line["matmul_gflops"]["numpy"]),
    )


def _trace_cells(run: Record) -> tuple[str | float | None, ...]:
    return run["rate"], whole(run["tokens_per_s"]), *run["first_token_s"].values()
