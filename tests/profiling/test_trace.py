"""Real traces of small programs."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from txlab.profiling.hlo import CONTROL_FLOW
from txlab.profiling.kinds import Kind, classify
from txlab.profiling.trace import Trace, read_trace, traced_span

SIZE, STEPS = 96, 3


def program(x: jax.Array) -> jax.Array:
    """A product outside of scopes in a loop, and one in a scope."""
    x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, None, length=STEPS)
    with jax.named_scope("attention"):
        return x @ x


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    folder = tmp_path_factory.mktemp("trace")
    run = jax.jit(program)
    x = jnp.eye(SIZE)
    run(x).block_until_ready()
    with traced_span(folder):
        run(x).block_until_ready()
    return read_trace(folder)


def test_operations_have_their_place_in_time(trace: Trace) -> None:
    assert trace.ops
    for op in trace.ops:
        assert trace.start < op.start <= op.stop <= op.end
        assert op.start < trace.end
    assert {op.module for op in trace.ops} == {"jit_program"}


def test_operations_are_what_their_hlo_says(trace: Trace) -> None:
    kinds = [classify(op) for op in trace.ops if op.instruction.is_product]
    assert sorted(kinds) == [Kind.ATTENTION] + [Kind.MATMUL] * STEPS
    assert {op.instruction.flops for op in trace.ops if op.instruction.is_product} == {2 * SIZE**3}


def test_what_encloses_operations_is_none(trace: Trace) -> None:
    assert not {op.instruction.opcode for op in trace.ops} & CONTROL_FLOW


def test_what_ran_outside_is_not_there(tmp_path: Path) -> None:
    run = jax.jit(program)
    x = run(jnp.eye(SIZE)).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        run(x).block_until_ready()
        with jax.profiler.TraceAnnotation("txlab step"):
            pass
    assert read_trace(tmp_path).ops == []


def test_a_folder_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no trace"):
        read_trace(tmp_path)
