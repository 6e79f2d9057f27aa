"""HLO in a trace, from protos made by hand and by XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from txlab.profiling import xplane_pb2 as pb
from txlab.profiling.hlo import HLO_STAT, METADATA_PLANE, Programs, read_programs


def xspace(*modules: pb.HloModule) -> bytes:
    """A trace's bytes that hold these programs, and a plane without any."""
    plane = pb.XPlane(name=METADATA_PLANE)
    plane.stat_metadata[7].name = HLO_STAT
    plane.stat_metadata[8].name = "program_id"
    for number, module in enumerate(modules):
        proto = pb.HloProto(hlo_module=module).SerializeToString()
        stats = [pb.XStat(metadata_id=8, bytes_value=b"\x01"), pb.XStat(metadata_id=7, bytes_value=proto)]
        plane.event_metadata[number].stats.extend(stats)
    return pb.XSpace(planes=[pb.XPlane(name="/host:CPU"), plane]).SerializeToString()


def instruction(number: int, name: str, opcode: str, shape: tuple[int, ...] = (), op_name: str = "", **fields):
    metadata = pb.OpMetadata(op_name=op_name)
    return pb.HloInstruction(
        id=number, name=name, opcode=opcode, shape=pb.Shape(dimensions=shape), metadata=metadata, **fields
    )


def module(number: int, rows: int = 6, name: str = "jit_f") -> pb.HloModule:
    """A fusion of a product (rows, 4) x (4, 5) and a bias, a call of a library, and a copy that has no name."""
    contracted = pb.DotDimensions(lhs_contracting_dimensions=[1])
    fused = [
        instruction(1, "x", "parameter", (rows, 4)),
        instruction(2, "w", "parameter", (4, 5)),
        instruction(
            3, "dot.1", "dot", (rows, 5), "jit(f)/adapter/dot", operand_ids=[1, 2], dot_dimension_numbers=contracted
        ),
        instruction(4, "add.1", "add", (rows, 5), "jit(f)/add", operand_ids=[3, 3]),
    ]
    entry = [
        instruction(5, "fusion.1", "fusion", (rows, 5), "jit(f)/add", called_computation_ids=[10]),
        instruction(6, "copy.1", "copy", (rows, 5), operand_ids=[5]),
        instruction(7, "exp.1", "exponential", (rows, 5), "jit(f)/attention/exp", operand_ids=[6]),
        instruction(8, "custom.1", "custom-call", (2, 2), custom_call_target="__cublas$gemm"),
    ]
    computations = [pb.HloComputation(id=10, instructions=fused), pb.HloComputation(id=11, instructions=entry)]
    return pb.HloModule(id=number, name=name, computations=computations)


def find(programs: Programs, program: int, *used: str):
    return programs.find(program, "jit_f", set(used))


def test_a_fusion_is_what_its_product_is() -> None:
    fusion = find(read_programs(xspace(module(3))), 3, "fusion.1")["fusion.1"]
    assert fusion.op_name == "jit(f)/adapter/dot"
    assert fusion.is_product
    assert fusion.flops == 2 * 6 * 5 * 4


def test_library_calls() -> None:
    known = find(read_programs(xspace(module(3))), 3)
    assert known["custom.1"].is_product
    assert known["custom.1"].flops is None
    assert not known["add.1"].is_product


def test_what_has_no_name_knows_its_neighbours() -> None:
    known = find(read_programs(xspace(module(3))), 3)
    assert known["copy.1"].near == ("jit(f)/attention/exp", "jit(f)/add")
    assert known["dot.1"].near == ()  # it has a name of its own


def test_a_program_is_known_by_its_id() -> None:
    programs = read_programs(xspace(module(3, rows=6), module(4, rows=60)))
    assert find(programs, 4, "fusion.1")["fusion.1"].flops == 2 * 60 * 5 * 4


def test_a_cached_program_is_known_by_name_and_content() -> None:
    programs = read_programs(xspace(module(3), module(4, name="jit_g")))
    assert find(programs, 99, "fusion.1")["fusion.1"].flops == 240
    assert find(programs, 99, "fusion.2") == {}
    assert programs.find(3, "jit_h", set()) == {}


def test_sizes_in_which_namesakes_differ_are_not_told() -> None:
    known = find(read_programs(xspace(module(3, rows=6), module(4, rows=60))), 99, "fusion.1")
    assert known["fusion.1"].flops is None
    assert known["fusion.1"].op_name == "jit(f)/adapter/dot"


def test_no_metadata() -> None:
    assert find(read_programs(pb.XSpace(planes=[pb.XPlane(name="/host:CPU")]).SerializeToString()), 1) == {}


@pytest.mark.parametrize("transposed", [False, True])
def test_flops_are_what_xla_counts(transposed: bool) -> None:
    """The fields that we read are where this version of XLA writes them."""

    def f(x, w):
        with jax.named_scope("attention"):
            return jnp.einsum("bik,jk->bij" if transposed else "bik,kj->bij", x, w)

    shapes = (3, 6, 40), (50, 40) if transposed else (40, 50)
    compiled = jax.jit(f).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    (hlo,) = compiled.runtime_executable().hlo_modules()
    proto = pb.HloModule.FromString(hlo.as_serialized_hlo_module_proto())
    known = read_programs(xspace(proto)).find(proto.id, "jit_f", set())
    products = [i for i in known.values() if i.opcode == "dot"]
    assert [i.flops for i in products] == [2 * 3 * 6 * 40 * 50]
    assert all("attention" in i.op_name for i in products)
