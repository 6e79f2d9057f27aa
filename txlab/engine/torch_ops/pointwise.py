"""Operations element by element. Where torch and JAX differ in a gradient (clamp, relu), it is torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special

from txlab.engine.torch_ops.values import Number, Operand, Placement, cast, floating, is_floating, is_tensor


def add(input: Operand, other: Operand, *, alpha: Number = 1) -> jax.Array:
    """``input + alpha * other``."""
    return jnp.add(input, other if alpha == 1 else jnp.multiply(alpha, other))


def sub(input: Operand, other: Operand, *, alpha: Number = 1) -> jax.Array:
    """``input - alpha * other``."""
    return jnp.subtract(input, other if alpha == 1 else jnp.multiply(alpha, other))


def rsub(input: Operand, other: Operand, *, alpha: Number = 1) -> jax.Array:
    """``other - alpha * input``."""
    return sub(other, input, alpha=alpha)


def div(input: Operand, other: Operand, *, rounding_mode: Literal["trunc", "floor"] | None = None) -> jax.Array:
    """True division, or rounded to zero or down; of two integers it is floating unless rounded."""
    if rounding_mode is None:
        return jnp.true_divide(input, other)
    if rounding_mode == "floor":
        return jnp.floor_divide(input, other)
    quotient = jnp.trunc(jnp.true_divide(input, other))
    return cast(quotient, jnp.result_type(input, other))


def pow(input: Operand, exponent: Operand) -> jax.Array:
    """``input ** exponent``; integers have no negative powers."""
    if isinstance(exponent, int) and exponent < 0 and not is_floating(input):
        raise ValueError("integers to negative integer powers are not allowed: make the base floating")
    return jnp.power(input, exponent)


def clamp(input: jax.Array, min: Operand | None = None, max: Operand | None = None) -> jax.Array:
    """Limit values. Those exactly at a bound keep their gradient, NaN stays, and ``max`` wins where it is below."""
    if min is None and max is None:
        raise ValueError("clamp needs a min or a max")
    if min is not None:
        input = jnp.where(input < min, min, input)
    return input if max is None else jnp.where(input > max, max, input)


def clamp_min(input: jax.Array, min: Operand) -> jax.Array:
    """Limit values from below."""
    return clamp(input, min=min)


def clamp_max(input: jax.Array, max: Operand) -> jax.Array:
    """Limit values from above."""
    return clamp(input, max=max)


def absolute(input: jax.Array) -> jax.Array:
    """|input|, whose gradient is the sign, also at 0."""
    return input * jnp.sign(lax.stop_gradient(input))


def relu(input: jax.Array, inplace: bool = False) -> jax.Array:
    """max(input, 0), without gradient at 0."""
    refuse_inplace(inplace)
    return jnp.where(input <= 0, cast(0, input.dtype), input)


def sigmoid(input: jax.Array) -> jax.Array:
    """1 / (1 + exp(-input))."""
    return jax.nn.sigmoid(floating(input))


def reciprocal(input: jax.Array) -> jax.Array:
    """1 / input."""
    return jnp.true_divide(1, input)


def where(condition: jax.Array, input: Operand | None = None, other: Operand | None = None) -> jax.Array:
    """``input`` where the condition holds, else ``other``."""
    if input is None or other is None:
        raise ValueError("where(condition) alone has a size that depends on values: give all three arguments")
    return jnp.where(condition, input, other)


def where_method(input: jax.Array, condition: jax.Array, other: Operand) -> jax.Array:
    """``input`` where the condition holds, else ``other``."""
    return where(condition, input, other)


def masked_fill(input: jax.Array, mask: jax.Array, value: Operand) -> jax.Array:
    """``value`` where the mask is True; the type stays."""
    return jnp.where(_boolean(mask), cast(value, input.dtype), input)


def nan_to_num(
    input: jax.Array, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> jax.Array:
    """Replace what is not finite by 0 and the type's limits, or by the values given."""
    return jnp.nan_to_num(input, nan=nan or 0.0, posinf=posinf, neginf=neginf)


def lerp(input: jax.Array, end: jax.Array, weight: Operand) -> jax.Array:
    """``input + weight * (end - input)``."""
    return input + weight * (end - input)


def addcmul(input: jax.Array, tensor1: Operand, tensor2: Operand, *, value: Number = 1) -> jax.Array:
    """``input + value * tensor1 * tensor2``."""
    return input + value * jnp.multiply(tensor1, tensor2)


def addcdiv(input: jax.Array, tensor1: Operand, tensor2: Operand, *, value: Number = 1) -> jax.Array:
    """``input + value * tensor1 / tensor2``."""
    return input + value * jnp.true_divide(tensor1, tensor2)


def xlogy(input: Operand, other: Operand) -> jax.Array:
    """``input * log(other)``, 0 where input is 0."""
    return special.xlogy(floating(input), floating(other))


def round(input: jax.Array, *, decimals: int = 0) -> jax.Array:
    """Round half to even."""
    return jnp.round(input, decimals)


def detach(input: jax.Array) -> jax.Array:
    """Return the values, without a gradient."""
    return lax.stop_gradient(input)


def same(input: jax.Array, *, memory_format: Placement | None = None) -> jax.Array:
    """Return the tensor itself: what clone, contiguous and cpu are where nothing is changed in place."""
    return input


def to(input: jax.Array, *targets: Any, dtype: np.dtype | None = None, other: jax.Array | None = None) -> jax.Array:
    """Change the type to a dtype or to that of another tensor; devices have no effect."""
    for target in (*targets, dtype, other):
        if is_tensor(target):
            input = cast(input, target.dtype)
        elif isinstance(target, np.dtype):
            input = cast(input, target)
    return input


def as_type(dtype: np.dtype) -> Callable[[jax.Array], jax.Array]:
    """Make the method that changes a tensor's type to ``dtype``."""

    def convert(input: jax.Array) -> jax.Array:
        return cast(input, dtype)

    return convert


def refuse_inplace(inplace: bool) -> None:
    """Raise ValueError for inplace=True."""
    if inplace:
        raise ValueError("inplace=True: values cannot be changed in place")


def _boolean(mask: jax.Array) -> jax.Array:
    if mask.dtype != np.bool_:
        raise TypeError(f"the mask must be of bool, not {mask.dtype}: compare it with something, or call .bool()")
    return mask


def _on_floating(function: Callable[..., jax.Array]) -> Callable[[jax.Array], jax.Array]:
    def apply(input: jax.Array) -> jax.Array:
        return function(floating(input))

    return apply


def _on_one(function: Callable[..., jax.Array]) -> Callable[[jax.Array], jax.Array]:
    def apply(input: jax.Array) -> jax.Array:
        return function(input)

    return apply


def _on_pair(function: Callable[..., jax.Array]) -> Callable[[Operand, Operand], jax.Array]:
    def apply(input: Operand, other: Operand) -> jax.Array:
        return function(input, other)

    return apply


_FLOATING: Mapping[str, Callable[..., jax.Array]] = {
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log2": jnp.log2,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "atan": jnp.arctan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "tanh": jnp.tanh,
    "erf": special.erf,
}

_SINGLE: Mapping[str, Callable[..., jax.Array]] = {
    "neg": jnp.negative,
    "negative": jnp.negative,
    "sign": jnp.sign,
    "square": jnp.square,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "trunc": jnp.trunc,
    "logical_not": jnp.logical_not,
    "bitwise_not": jnp.bitwise_not,
    "isfinite": jnp.isfinite,
    "isnan": jnp.isnan,
    "isinf": jnp.isinf,
}

_PAIRS: Mapping[str, Callable[..., jax.Array]] = {
    "mul": jnp.multiply,
    "multiply": jnp.multiply,
    "minimum": jnp.minimum,
    "maximum": jnp.maximum,
    "fmod": jnp.fmod,
    "remainder": jnp.remainder,
    "floor_divide": jnp.floor_divide,
    "atan2": jnp.arctan2,
    "logaddexp": jnp.logaddexp,
    "heaviside": jnp.heaviside,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
}

# Of torch and of Tensor alike.
OPS: Mapping[str, Callable[..., Any]] = {
    **{name: _on_floating(function) for name, function in _FLOATING.items()},
    **{name: _on_one(function) for name, function in _SINGLE.items()},
    **{name: _on_pair(function) for name, function in _PAIRS.items()},
    "add": add,
    "sub": sub,
    "subtract": sub,
    "rsub": rsub,
    "div": div,
    "divide": div,
    "true_divide": div,
    "pow": pow,
    "abs": absolute,
    "absolute": absolute,
    "reciprocal": reciprocal,
    "round": round,
    "clamp": clamp,
    "clip": clamp,
    "clamp_min": clamp_min,
    "clamp_max": clamp_max,
    "relu": relu,
    "sigmoid": sigmoid,
    "masked_fill": masked_fill,
    "nan_to_num": nan_to_num,
    "lerp": lerp,
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "xlogy": xlogy,
    "detach": detach,
    "clone": same,
}

FUNCTIONS: Mapping[str, Callable[..., Any]] = {"where": where}

METHODS: Mapping[str, Callable[..., Any]] = {
    "where": where_method,
    "to": to,
    "type": to,
    "type_as": to,
    "float": as_type(np.dtype(np.float32)),
    "double": as_type(np.dtype(np.float32)),
    "long": as_type(np.dtype(np.int32)),
    "int": as_type(np.dtype(np.int32)),
    "bool": as_type(np.dtype(np.bool_)),
    "contiguous": same,
    "cpu": same,
}
