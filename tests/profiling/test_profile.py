"""A step taken apart: a hand-made trace, and how it is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from txlab.models.config import ModelConfig
from txlab.profiling.bench import Bench
from txlab.profiling.flops import layer_parameters
from txlab.profiling.hlo import Instruction
from txlab.profiling.kinds import Kind
from txlab.profiling.profile import Profile, analyse
from txlab.profiling.report import SHOWN, render_bench, render_profile
from txlab.profiling.trace import Op, Trace

PRODUCT = Instruction("dot.1", "fusion", "jit(f)/dot_general", is_product=True, flops=3_000_000_000)
SOFTMAX = Instruction("exp.1", "fusion", "jit(f)/attention/exp")
LAYER = "jit_layer_forward"


def op(instruction: Instruction, start: float, stop: float, module: str = "jit_f") -> Op:
    return Op(module, 1, instruction, start, stop, stop)


@pytest.fixture
def trace() -> Trace:
    """Ten seconds, of which seven are two products, one is attention, and two are gaps."""
    return Trace(0.0, 10.0, [op(PRODUCT, 0, 4), op(SOFTMAX, 4.5, 5.5), op(PRODUCT, 5.5, 8.5)])


@pytest.fixture
def profile(trace: Trace, bench: Bench, config: ModelConfig) -> Profile:
    return analyse(trace, bench, config)


def test_parts_add_up_to_the_step(profile: Profile) -> None:
    assert profile.kinds[Kind.MATMUL] == 7
    assert profile.kinds[Kind.ATTENTION] == 1
    assert profile.gaps == [0.5, 1.5]
    assert sum(profile.kinds.values()) + sum(profile.gaps) == profile.seconds == 10


def test_executions_of_an_instruction_are_one_operation(profile: Profile) -> None:
    first, second = profile.operations[:2]
    assert (first.name, first.calls, first.seconds, first.flops) == ("dot.1", 2, 7, 6_000_000_000)
    assert (second.name, second.flops) == ("exp.1", None)
    assert profile.computed == 6_000_000_000


@pytest.fixture
def padded(trace: Trace, bench: Bench, config: ModelConfig) -> Profile:
    """Of 6 tokens, where layers ran over 4 + 4 positions."""
    product = replace(PRODUCT, flops=2 * 4 * layer_parameters(config))
    scores = Instruction("dot.2", "fusion", "jit(layer_forward)/attention/dot_general", True, 10**9)
    layers = [op(product, 0, 1, LAYER), op(scores, 1, 2, LAYER), op(product, 2, 3, LAYER), op(product, 3, 4)]
    return analyse(replace(trace, ops=layers), bench, config)


def test_padding_is_what_layers_computed_beyond_the_tokens(padded: Profile) -> None:
    assert padded.positions == 8
    assert padded.padding == pytest.approx(1 / 4)
    assert row(render_profile(padded), "padding") == "25.0% of 8 positions"


def test_padding_that_the_trace_does_not_tell(trace: Trace, bench: Bench, config: ModelConfig) -> None:
    unknown = replace(trace, ops=[op(replace(PRODUCT, flops=None), 0, 4, LAYER), op(PRODUCT, 4, 5, LAYER)])
    for told in (trace, unknown):
        profile = analyse(told, bench, config)
        assert profile.positions is profile.padding is None
        assert row(render_profile(profile), "padding") == "not told by the trace"


def row(text: str, name: str) -> str:
    """What stands behind ``name`` at the start of a line, with single spaces."""
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return " ".join(line.removeprefix(name).split())


def test_the_report_of_a_bench(bench: Bench) -> None:
    text = render_bench(bench)
    assert text.startswith("tiny, float32, cpu: 2 x 3 tokens, rank 4\n")
    assert row(text, "step") == "2,000.0 ms 3 tokens/s"
    assert row(text, "FLOPs counted") == "6 GFLOP 1 GFLOP a token"
    assert row(text, "counted FLOP/s") == "3 GFLOP/s"
    assert row(text, "matmul, XLA") == "4 GFLOP/s the step runs at 75%"
    assert row(text, "matmul, NumPy") == "5 GFLOP/s the step runs at 60%"


def test_the_report_of_a_profile(profile: Profile, bench: Bench) -> None:
    text = render_profile(profile)
    assert text.startswith(render_bench(bench))
    assert row(text, "FLOPs computed") == "6 GFLOP in matrix products, 1.00 x counted"
    assert row(text, "base matmuls") == "7,000.0 70.0% 0.9"
    assert row(text, "attention") == "1,000.0 10.0%"
    assert row(text, "host: nothing ran") == "2,000.0 20.0%"
    assert row(text, "traced step") == "10,000.0 100.0%"
    assert "2 gaps between operations, the longest 1,500.00 ms" in text
    assert row(text, "dot.1") == "base matmuls 2 7,000.0 70.0% 0.9 jit(f)/dot_general"


def test_only_the_most_expensive_operations_are_listed(trace: Trace, bench: Bench, config: ModelConfig) -> None:
    ops = [op(replace(SOFTMAX, name=f"exp.{n}", op_name=f"{'x' * 200}/{n}"), n * n, (n + 1) ** 2) for n in range(20)]
    lines = render_profile(analyse(Trace(0.0, 400.0, ops), bench, config)).splitlines()
    header = next(n for n, line in enumerate(lines) if line.startswith("operation"))
    assert len(lines) - header - 1 == SHOWN
    assert lines[header + 1].startswith("exp.19 ")
    assert lines[header + 1].endswith("x/19")
    assert max(map(len, lines)) < 160
