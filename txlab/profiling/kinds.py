"""What an operation of a training step is for."""

from __future__ import annotations

import re
from enum import StrEnum

from txlab.profiling.trace import Op


class Kind(StrEnum):
    """Parts of a training step, in the order of the report."""

    MATMUL = "base matmuls"
    ADAPTER = "adapter products"
    ATTENTION = "attention"
    LOSS = "head and loss"
    OPTIMIZER = "optimizer"
    OTHER = "elementwise and copies"


_SCOPES = {"attention": Kind.ATTENTION, "adapter": Kind.ADAPTER, "loss": Kind.LOSS, "optimizer": Kind.OPTIMIZER}
_SCOPE = re.compile(rf"\b({'|'.join(_SCOPES)})\b")
# Programs of one purpose, by how their names begin.
_PROGRAMS = {"jit_head": Kind.LOSS, "jit__optim_step": Kind.OPTIMIZER}


def classify(op: Op) -> Kind:
    """The kind that the innermost ``jax.named_scope`` of the operation says, and where there is none its program.

    An operation that XLA left without a name is of the scope of its users, else of what it is made from.
    What neither tells is a base matmul where it computes a product, else elementwise. A fusion counts as a whole: as
    the product in it, so that a bias or a residual added on the way belongs to the matmul. Operations whose HLO the
    trace lacks have no scope; only their program and opcode speak for them.
    """
    for op_name in (op.instruction.op_name, *op.instruction.near):
        if scopes := _SCOPE.findall(op_name):
            return _SCOPES[scopes[-1]]
    for prefix, kind in _PROGRAMS.items():
        if op.module.startswith(prefix):
            return kind
    product = op.instruction.is_product or op.instruction.opcode == "dot"
    return Kind.MATMUL if product else Kind.OTHER
