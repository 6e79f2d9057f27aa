"""What ``benchmarks/train.py`` says of what it measured: a JSON record per row, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.measure import table
from benchmarks.workloads import Row, Work

Record = dict[str, Any]  # of JSON


@dataclass(frozen=True, slots=True)
class Pair:
    """One repetition of a row: what the trainers' ``step`` told, and the matmul rates before and after."""

    txlab: Record
    peft: Record | None
    rates: tuple[Record, Record]


@dataclass(slots=True)
class Measured:
    """All that was measured of a row."""

    row: Row
    flops: int
    compiles: Record
    pairs: list[Pair] = field(default_factory=list)
    peak_gb: float | None = None
    peft_peak_gb: float | None = None


def records(group: Sequence[Measured]) -> list[Record]:
    """The JSON line of each row of a group."""
    seconds = {m.row.name: [pair.txlab["seconds"] for pair in m.pairs] for m in group}
    return [record(measured, relative_cost(measured.row, seconds)) for measured in group]


def record(measured: Measured, cost: float | None) -> Record:
    """Figures of a row; speeds in tokens/s without padding, rates in GFLOP/s, memory in 10^9 bytes."""
    row, pairs = measured.row, measured.pairs
    both = [(pair.txlab, pair.peft) for pair in pairs if pair.peft]
    rates = [rate for pair in pairs for rate in pair.rates]
    txlab = speeds(row.work, [pair.txlab for pair in pairs], measured.peak_gb)
    peft = speeds(row.work, [theirs for _, theirs in both], measured.peft_peak_gb) if both else None
    xla = median(rate["xla"] for rate in rates)
    return {
        "row": row.name,
        "tokens": row.work.tokens,
        "txlab": txlab,
        "peft": peft,
        "ratio": txlab["tokens_per_s"] / peft["tokens_per_s"] if peft else None,
        "pair_ratio": median(theirs["seconds"] / ours["seconds"] for ours, theirs in both) if both else None,
        "goal": row.goal,
        "cost": cost,
        "cost_goal": row.cost_goal,
        "flops_per_token": measured.flops / row.work.tokens,
        "share": measured.flops / row.work.tokens * txlab["tokens_per_s"] / (xla * 1e9),
        "matmul_gflops": {"xla": xla, "numpy": median(rate["numpy"] for rate in rates), "all": rates},
        "padding": pairs[0].txlab["padding"],
        "compiles": measured.compiles,
    }


def speeds(work: Work, steps: Sequence[Record], peak_gb: float | None) -> Record:
    """One trainer's figures. The loss, of its first step, tells whether both did the same work."""
    seconds = [step["seconds"] for step in steps]
    return {
        "seconds": seconds,
        "tokens_per_s": work.tokens / median(seconds),
        "best_tokens_per_s": work.tokens / min(seconds),
        "loss_per_token": steps[0]["loss"] / work.tokens,
        "peak_gb": peak_gb,
    }


def relative_cost(row: Row, seconds: Mapping[str, Sequence[float]]) -> float | None:
    """Median, over repetitions, of a row's seconds relative to what they should be; None where nothing says that."""
    if not row.cost_of:
        return None
    expected = zip(*([weight * s for s in seconds[name]] for name, weight in row.cost_of.items()), strict=True)
    return median(took / sum(parts) for took, parts in zip(seconds[row.name], expected, strict=True))


def starts_table(lines: Sequence[Record]) -> str:
    """Records of starts as text."""
    header = ("start", "s to first step", "programs", "from cache", "compile s")
    return table(header, [(line["start"], line["seconds"], *compile_cells(line["compiles"])) for line in lines])


def compile_cells(compiles: Record | None) -> tuple[str | float | None, ...]:
    """Cells of what a process compiled."""
    if compiles is None:
        return None, None, None
    return str(compiles["programs"]), str(compiles["from_cache"]), compiles["seconds"]


def rows_table(lines: Sequence[Record]) -> str:
    """Records of rows as text."""
    figures = ("txlab tok/s", "best", "PEFT tok/s", "best", "ratio", "goal")
    header = ("row", *figures, "cost", "goal", "share", "GB", "PEFT GB", "padding")
    return table(header, [row_cells(line, line["peft"] or {}) for line in lines])


def row_cells(line: Record, peft: Record) -> tuple[str | float | None, ...]:
    """Cells of one row."""
    txlab = line["txlab"]
    return (
        line["row"],
        *(whole(side.get(name)) for side in (txlab, peft) for name in ("tokens_per_s", "best_tokens_per_s")),
        *(line["ratio"], bound("≥", line["goal"]), line["cost"], bound("≤", line["cost_goal"]), line["share"]),
        *(txlab["peak_gb"], peft.get("peak_gb"), line["padding"]),
    )


def whole(number: float | None) -> str | None:
    """Without decimals."""
    return None if number is None else f"{number:.0f}"


def bound(sign: str, number: float | None) -> str | None:
    """A goal."""
    return None if number is None else f"{sign} {number:.2f}"
