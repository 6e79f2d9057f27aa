"""A quick check of the machine: tokens/s of a standard training step, beside the matmul rate of the same process."""

from __future__ import annotations

from dataclasses import dataclass

from txlab.engine.engine import Engine
from txlab.profiling.flops import step_flops
from txlab.profiling.rates import MatmulRates, measure_rates
from txlab.profiling.workload import StepShape, TrainingStep, training_step

WARM_UP = 2  # steps: the first compiles, the second finds the optimizer's state there
STEPS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """One training step and what it is held against."""

    model: str
    platform: str  # "cpu", "gpu"
    dtype: str
    shape: StepShape
    seconds: float  # best of STEPS
    flops: int  # counted, see step_flops
    rates: MatmulRates

    @property
    def tokens_per_second(self) -> float:
        """Of the best step."""
        return self.shape.tokens / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Of the best step; counted FLOPs only."""
        return self.flops / self.seconds


def run_bench(engine: Engine, shape: StepShape) -> Bench:
    """Time a training step. RequestError where the engine refuses it."""
    with training_step(engine, shape) as step:
        return time_step(engine, shape, step)


def time_step(engine: Engine, shape: StepShape, step: TrainingStep) -> Bench:
    """Warm ``step`` up, time it, and measure the matmul rate at its shape: (tokens, hidden) x (hidden, inner)."""
    for _ in range(WARM_UP):
        step()
    seconds = min(step() for _ in range(STEPS))
    base, config = engine.base, engine.base.config
    dtype = str(base.decoder.head.dtype)
    return Bench(
        model=base.name,
        platform=base.mesh.devices.flat[0].platform,
        dtype=dtype,
        shape=shape,
        seconds=seconds,
        flops=step_flops(config, shape.lora, [shape.length] * shape.rows),
        rates=measure_rates(shape.tokens, config.hidden_size, config.intermediate_size, dtype),
    )
