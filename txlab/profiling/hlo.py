"""The HLO that a trace carries: what each traced operation is, where it comes from, and what it must compute."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import prod

from txlab.profiling import xplane_pb2 as pb

METADATA_PLANE = "/host:metadata"
HLO_STAT = "Hlo Proto"
CONTROL_FLOW = frozenset({"while", "conditional", "call"})  # these enclose operations that are traced themselves
_PRODUCT_CALL = re.compile(r"gemm|matmul|dot", re.IGNORECASE)  # names of library calls


@dataclass(frozen=True, slots=True)
class Instruction:
    """One HLO instruction. A fusion is described by the product in it, where it has one."""

    name: str
    opcode: str
    op_name: str = ""  # path of named scopes and JAX primitives; empty where XLA made it up
    is_product: bool = False
    flops: int | None = None  # of its matrix products at each execution; None: it has none, or they are not known
    near: tuple[str, ...] = ()  # of an instruction without op_name: those of its users and of its operands


@dataclass(frozen=True, slots=True)
class Module:
    """A compiled program."""

    id: int
    name: str
    instructions: Mapping[str, Instruction]


class Programs:
    """The programs of a process, by the names that a trace gives them."""

    def __init__(self, modules: Sequence[Module]):
        self._modules = modules

    def find(self, program: int, name: str, used: Set[str]) -> Mapping[str, Instruction]:
        """Instructions by name of the program ``name``, of which the operations ``used`` were traced.

        A program that came from the compilation cache runs under another id than its HLO has; it is then known by
        its name and by what it holds. Where several fit, FLOPs are told only where all agree. Empty where none fits.
        """
        fitting = [module for module in self._modules if module.name == name and used <= module.instructions.keys()]
        exact = [module for module in fitting if module.id == program]
        candidates = (exact or fitting) or [Module(program, name, {})]
        first, *others = (module.instructions for module in candidates)
        return {key: _common(one, [other[key] for other in others if key in other]) for key, one in first.items()}


def _common(one: Instruction, others: Sequence[Instruction]) -> Instruction:
    """An instruction, without the FLOPs in which its namesakes differ."""
    return one if all(other.flops == one.flops for other in others) else replace(one, flops=None)


def read_programs(xspace: bytes) -> Programs:
    """The programs in a serialized XSpace: all that the process holds, whether they ran or not."""
    return Programs([_module(proto) for proto in _hlo_protos(pb.XSpace.FromString(xspace))])


def _hlo_protos(space: pb.XSpace) -> Iterator[pb.HloModule]:
    for plane in space.planes:
        if plane.name == METADATA_PLANE:
            names = {key: metadata.name for key, metadata in plane.stat_metadata.items()}
            for metadata in plane.event_metadata.values():
                for stat in metadata.stats:
                    if names.get(stat.metadata_id) == HLO_STAT:
                        yield pb.HloProto.FromString(stat.bytes_value).hlo_module


def _module(proto: pb.HloModule) -> Module:
    computations = {computation.id: computation.instructions for computation in proto.computations}
    shapes = {i.id: tuple(i.shape.dimensions) for instructions in computations.values() for i in instructions}

    def inside(instruction: pb.HloInstruction) -> Iterator[pb.HloInstruction]:
        """The instruction itself and, of a fusion, what was fused."""
        yield instruction
        if instruction.opcode == "fusion":
            for called in instruction.called_computation_ids:
                for fused in computations[called]:
                    yield from inside(fused)

    described = {}
    for instructions in computations.values():
        for instruction in instructions:
            one = _describe(instruction, list(inside(instruction)), shapes)
            described[one.name] = one if one.op_name else replace(one, near=_near(instruction, instructions))
    return Module(proto.id, proto.name, described)


def _near(instruction: pb.HloInstruction, computation: Sequence[pb.HloInstruction]) -> tuple[str, ...]:
    """What surrounds an instruction: XLA's rewrites drop the op_name of batched products."""
    users = [other for other in computation if instruction.id in other.operand_ids]
    operands = [other for other in computation if other.id in instruction.operand_ids]
    return tuple(other.metadata.op_name for other in (*users, *operands) if other.metadata.op_name)


def _describe(
    instruction: pb.HloInstruction, parts: Sequence[pb.HloInstruction], shapes: Mapping[int, tuple[int, ...]]
) -> Instruction:
    dots = [part for part in parts if part.opcode == "dot"]
    op_names = (part.metadata.op_name for part in (*dots, *parts))
    return Instruction(
        name=instruction.name,
        opcode=instruction.opcode,
        op_name=next(filter(None, op_names), ""),
        is_product=bool(dots) or _PRODUCT_CALL.search(instruction.custom_call_target) is not None,
        flops=sum(_dot_flops(dot, shapes) for dot in dots) if dots else None,
    )


def _dot_flops(dot: pb.HloInstruction, shapes: Mapping[int, tuple[int, ...]]) -> int:
    """Two for each multiplication: 2 x elements of the result x elements contracted for each."""
    left = shapes[dot.operand_ids[0]]
    contracted = prod(left[axis] for axis in dot.dot_dimension_numbers.lhs_contracting_dimensions)
    return 2 * prod(dot.shape.dimensions) * contracted
