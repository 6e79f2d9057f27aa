"""Python's own operators and math: of tensors as torch has them, of numbers and shapes as Python has them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax

from txlab.engine.torch_ops import indexing, pointwise, products, shapes
from txlab.engine.torch_ops.values import Placement, Ranked, is_tensor

MAX_BITS = 64  # of an integer
MAX_RANK = 64  # of a shape


def getitem(value: Any, index: Any) -> Any:
    """Index a tensor, a shape, or what an operation returned several of."""
    return indexing.getitem(value, index) if is_tensor(value) else _sequence(value)[index]


def attribute(value: Any, name: str) -> Any:
    """Read an attribute of a tensor, or ``values`` and ``indices`` of a pair."""
    if isinstance(value, Ranked) and name in Ranked._fields:
        return getattr(value, name)
    if name not in ATTRIBUTES or not is_tensor(value):
        raise ValueError(f"the attribute {name!r}: there are {', '.join(ATTRIBUTES)} of tensors")
    return ATTRIBUTES[name](value)


def _operator(of_numbers: Callable[..., Any], of_tensors: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*operands: Any) -> Any:
        if any(is_tensor(operand) for operand in operands):
            return of_tensors(*operands)
        if not all(isinstance(operand, int | float) for operand in operands):
            raise TypeError(f"{of_numbers.__name__} of {', '.join(type(operand).__name__ for operand in operands)}")
        return _refuse_large(of_numbers(*operands))

    return apply


def _refuse_large(number: Any) -> Any:
    if isinstance(number, int) and number.bit_length() > MAX_BITS:
        raise OverflowError(f"an integer of more than {MAX_BITS} bits: make it floating")
    return number


def _add(a: Any, b: Any) -> Any:
    if not (isinstance(a, tuple) and isinstance(b, tuple)):
        return _ADD(a, b)
    if len(a) + len(b) > MAX_RANK:
        raise ValueError(f"a shape of more than {MAX_RANK} dimensions")
    return a + b


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * exponent > MAX_BITS:
        raise OverflowError(f"an integer of more than {MAX_BITS} bits: make it floating")  # before it is computed
    return base**exponent


def _math(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*numbers: Any) -> Any:
        if any(is_tensor(number) for number in numbers):
            raise TypeError(f"math.{function.__name__} is for numbers: use torch.{function.__name__} for tensors")
        return function(*numbers)

    return apply


def _sequence(value: Any) -> Any:
    if not isinstance(value, tuple | list):
        raise TypeError(f"an index into {type(value).__name__}")
    return value


def _transposed(tensor: jax.Array) -> jax.Array:
    return tensor.T


def _matrix_transposed(tensor: jax.Array) -> jax.Array:
    return tensor.mT


_ADD = _operator(operator.add, pointwise.OPS["add"])

ATTRIBUTES: Mapping[str, Callable[[jax.Array], Any]] = {
    "shape": shapes.size,
    "ndim": shapes.rank,
    "dtype": operator.attrgetter("dtype"),
    "device": lambda tensor: Placement(),
    "T": _transposed,
    "mT": _matrix_transposed,
    "data": pointwise.detach,
}

# What pointwise calls it -> Python's.
_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "neg": operator.neg,
    "abs": operator.abs,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_xor": operator.xor,
    "bitwise_not": operator.invert,
}

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "getattr": attribute,
    "operator.getitem": getitem,
    "operator.add": _add,
    "operator.pow": _operator(_power, pointwise.pow),
    "operator.matmul": products.matmul,
    **{
        f"operator.{function.__name__}": _operator(function, pointwise.OPS[name])
        for name, function in _OPERATORS.items()
    },
    "operator.pos": _operator(operator.pos, pointwise.same),
    **{
        f"math.{function.__name__}": _math(function)
        for function in (
            math.sqrt,
            math.exp,
            math.expm1,
            math.log,
            math.log2,
            math.log10,
            math.log1p,
            math.pow,
            math.sin,
            math.cos,
            math.tanh,
            math.floor,
            math.ceil,
            math.fabs,
            math.isfinite,
            math.isnan,
        )
    },
}
