"""Operations told apart by scope, program and opcode."""

from __future__ import annotations

import pytest

from txlab.profiling.hlo import Instruction
from txlab.profiling.kinds import Kind, classify
from txlab.profiling.trace import Op


def kind(op_name: str = "", opcode: str = "fusion", module: str = "jit_layer_forward", **known) -> Kind:
    return classify(Op(module, 1, Instruction("op", opcode, op_name, **known), 0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("jit(layer_forward)/attention/bkqd,bksd->bkqs/dot_general", Kind.ATTENTION),
        ("jit(layer_backward)/transpose(jvp(attention))/mul", Kind.ATTENTION),
        ("jit(layer_forward)/adapter/dot_general", Kind.ADAPTER),
        ("jit(f)/jvp(loss)/while/body/closed_call/dot_general", Kind.LOSS),
        ("jit(f)/loss/adapter/dot_general", Kind.ADAPTER),
        ("jit(g)/optimizer/mul", Kind.OPTIMIZER),
    ],
)
def test_the_innermost_scope_says_it(op_name: str, expected: Kind) -> None:
    assert kind(op_name) is expected
    assert kind(op_name, is_product=True) is expected


def test_outside_of_scopes_a_product_is_the_bases() -> None:
    assert kind("jit(layer_forward)/dot_general", is_product=True) is Kind.MATMUL
    assert kind("jit(layer_forward)/mul") is Kind.OTHER
    assert kind("jit(adapters)/crossattention/mul") is Kind.OTHER


def test_what_has_no_name_belongs_to_its_neighbours() -> None:
    near = ("jit(f)/transpose(jvp())/concatenate", "jit(f)/attention/exp", "jit(f)/loss/exp")
    assert kind(near=near, is_product=True) is Kind.ATTENTION
    assert kind(near=near[:1], is_product=True) is Kind.MATMUL


def test_without_scopes_the_program_says_it() -> None:
    assert kind("jit(head_forward)/dot_general", module="jit_head_forward", is_product=True) is Kind.LOSS
    assert kind("", module="jit__optim_step") is Kind.OPTIMIZER


def test_without_hlo_the_opcode_says_it() -> None:
    assert kind("", opcode="dot") is Kind.MATMUL
    assert kind("", opcode="copy") is Kind.OTHER
