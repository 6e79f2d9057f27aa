"""A bench or a profile as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from txlab.profiling.bench import Bench
from txlab.profiling.kinds import Kind
from txlab.profiling.profile import Operation, Profile

SHOWN = 12  # operations
OP_NAME = 72  # characters, the last ones


def render_bench(bench: Bench) -> str:
    """A few lines: the step, its speed, and its share of the matmul rate."""
    shape, rates = bench.shape, bench.rates
    rows = [
        ("step", f"{bench.seconds * 1e3:,.1f} ms", f"{bench.tokens_per_second:,.0f} tokens/s"),
        ("FLOPs counted", giga(bench.flops, "GFLOP"), f"{giga(bench.flops / shape.tokens, 'GFLOP')} a token"),
        ("counted FLOP/s", giga(bench.flops_per_second, "GFLOP/s"), ""),
        ("matmul, XLA", giga(rates.xla, "GFLOP/s"), f"the step runs at {bench.flops_per_second / rates.xla:.0%}"),
        ("matmul, NumPy", giga(rates.numpy, "GFLOP/s"), f"the step runs at {bench.flops_per_second / rates.numpy:.0%}"),
    ]
    title = f"{bench.model}, {bench.dtype}, {bench.platform}: {shape.rows} x {shape.length} tokens, rank {shape.rank}"
    return "\n".join([title, "", *table(rows, "<>>")])


def render_profile(profile: Profile) -> str:
    """The bench, the parts of the step, and the operations that took most of it."""
    return "\n\n".join([render_bench(profile.bench), _work(profile), _parts(profile), _operations(profile)])


def _work(profile: Profile) -> str:
    padding = "not told by the trace"
    if profile.padding is not None:
        padding = f"{profile.padding:.1%} of {profile.positions:,} positions"
    ratio = profile.computed / profile.bench.flops
    rows = [
        ("padding", padding),
        ("FLOPs computed", f"{giga(profile.computed, 'GFLOP')} in matrix products, {ratio:.2f} x counted"),
    ]
    return "\n".join(table(rows, "<<"))


def _parts(profile: Profile) -> str:
    """A row for each kind, one for the host, and their sum.

    Rates are of the products' FLOPs, as computed. Operations that run at once share their time: while a matmul keeps
    all cores busy and a copy has a thread too, half of the time is the copy's, and the matmul looks the faster.
    """
    products = {kind: sum(o.flops or 0 for o in profile.operations if o.kind is kind) for kind in Kind}
    rows: list[tuple[str, ...]] = [("part of the step", "ms", "share", "GFLOP/s")]
    rows += [_part(profile, kind, seconds, products[kind]) for kind, seconds in profile.kinds.items()]
    rows.append(_part(profile, "host: nothing ran", sum(profile.gaps)))
    rows.append(_part(profile, "traced step", profile.seconds))
    longest = max(profile.gaps, default=0.0)
    gaps = f"{len(profile.gaps):,} gaps between operations, the longest {longest * 1e3:,.2f} ms"
    return "\n".join([*table(rows, "<>>>"), gaps])


def _part(profile: Profile, name: str, seconds: float, flops: int = 0) -> tuple[str, ...]:
    return name, f"{seconds * 1e3:,.1f}", f"{seconds / profile.seconds:.1%}", _rate(flops, seconds)


def _operations(profile: Profile) -> str:
    rows: list[tuple[str, ...]] = [("operation", "part", "calls", "ms", "share", "GFLOP/s", "op_name")]
    rows += [_operation(profile, operation) for operation in profile.operations[:SHOWN]]
    return "\n".join(table(rows, "<<>>>><"))


def _operation(profile: Profile, operation: Operation) -> tuple[str, ...]:
    op_name = operation.op_name or operation.program
    return (
        operation.name,
        operation.kind,
        f"{operation.calls:,}",
        f"{operation.seconds * 1e3:,.1f}",
        f"{operation.seconds / profile.seconds:.1%}",
        _rate(operation.flops or 0, operation.seconds),
        op_name if len(op_name) <= OP_NAME else f"…{op_name[1 - OP_NAME :]}",
    )


def _rate(flops: int, seconds: float) -> str:
    return f"{flops / seconds / 1e9:,.1f}" if flops and seconds else ""


def giga(value: float, unit: str) -> str:
    """A number in billions, three significant digits at least."""
    size = value / 1e9
    return f"{size:,.0f} {unit}" if size >= 100 else f"{size:.3g} {unit}"


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Lines of aligned columns; ``align`` has < or > for each."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(align))]
    cells = [[f"{cell:{way}{width}}" for cell, way, width in zip(row, align, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]
