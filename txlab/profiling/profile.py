"""A training step taken apart: the figures that the report shows."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from txlab.engine.engine import Engine
from txlab.models.config import ModelConfig
from txlab.profiling.attribution import Attribution, attribute
from txlab.profiling.bench import Bench, time_step
from txlab.profiling.flops import layer_parameters
from txlab.profiling.kinds import Kind, classify
from txlab.profiling.trace import Op, Trace, read_trace, traced_span
from txlab.profiling.workload import StepShape, training_step

LAYER_PROGRAM = "jit_layer_forward"


@dataclass(frozen=True, slots=True)
class Operation:
    """All executions of one instruction in the step."""

    name: str
    op_name: str
    program: str
    kind: Kind
    calls: int
    seconds: float
    flops: int | None  # of all calls; None: no product, or not known


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one training step went. Times are parts of ``seconds`` and add up to it."""

    bench: Bench  # the same step without a trace
    seconds: float  # of the traced step
    kinds: Mapping[Kind, float]  # seconds
    gaps: Sequence[float]  # seconds each; nothing ran on the device
    positions: int | None  # of tokens that went through the model, padding included; None: not told by the trace
    operations: Sequence[Operation]  # the most expensive first

    @property
    def padding(self) -> float | None:
        """Share of the positions that held no token."""
        return None if self.positions is None else 1 - self.bench.shape.tokens / self.positions

    @property
    def computed(self) -> int:
        """FLOPs of the matrix products that ran, as far as the trace tells them."""
        return sum(operation.flops or 0 for operation in self.operations)


def run_profile(engine: Engine, shape: StepShape, keep: Path | None = None) -> Profile:
    """Warm a training step up, time it, and take one apart.

    The trace is of the whole process: what else runs meanwhile is in it. It stays in the folder ``keep``, where
    Perfetto and XProf find it, or nowhere. RequestError where the engine refuses the step, RuntimeError where this
    process is being traced already.
    """
    with nullcontext(keep) if keep else tempfile.TemporaryDirectory() as folder, training_step(engine, shape) as step:
        bench = time_step(engine, shape, step)
        with traced_span(Path(folder)):
            step()
        return analyse(read_trace(Path(folder)), bench, engine.base.config)


def analyse(trace: Trace, bench: Bench, config: ModelConfig) -> Profile:
    """The profile of a traced step of a model of this configuration."""
    spent = attribute(trace.ops, trace.start, trace.end)
    operations = _operations(trace.ops, spent)
    return Profile(
        bench=bench,
        seconds=trace.end - trace.start,
        kinds={kind: sum(o.seconds for o in operations if o.kind is kind) for kind in Kind},
        gaps=spent.gaps,
        positions=forward_positions(operations, config),
        operations=sorted(operations, key=lambda operation: operation.seconds, reverse=True),
    )


def forward_positions(operations: Iterable[Operation], config: ModelConfig) -> int | None:
    """Positions that went through the layers, by the FLOPs of the base's products in the program of a layer.

    What is recomputed belongs to another program. None where there is no such program or its FLOPs are not known.
    """
    flops = [o.flops for o in operations if o.program == LAYER_PROGRAM and o.kind is Kind.MATMUL]
    if not flops or None in flops:
        return None
    return round(sum(filter(None, flops)) / (2 * layer_parameters(config)))


def _operations(ops: Sequence[Op], spent: Attribution) -> list[Operation]:
    """The executions of each instruction together."""
    seconds: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    first: dict[tuple[str, int, str], Op] = {}
    for op, own in zip(ops, spent.seconds, strict=True):
        key = op.module, op.program, op.instruction.name
        seconds[key].append(own)
        first.setdefault(key, op)
    return [_together(first[key], calls) for key, calls in seconds.items()]


def _together(op: Op, calls: Sequence[float]) -> Operation:
    instruction = op.instruction
    flops = None if instruction.flops is None else instruction.flops * len(calls)
    return Operation(instruction.name, instruction.op_name, op.module, classify(op), len(calls), sum(calls), flops)
