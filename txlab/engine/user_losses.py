"""A user's JAX function as a loss, and what it must fulfil before it may be one.

The function sees one datum. It is mapped over the rows of a batch, one datum a row, so it may look across positions.
A number for a whole datum stands at the first position of its row, where it takes part in sums like any other.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from txlab.engine.losses import Loss, Terms, apply, check_name

UserFunction = Callable[..., Any]
LENGTH, WIDTHS = 7, (8, 32)  # of the sample datum, and of the padded rows that it is tried in
TOLERANCE = 1e-4


class LossError(ValueError):
    """A function cannot be a loss; the message says what is wrong with it."""


def user_loss(
    name: str,
    function: UserFunction,
    inputs: Sequence[str] = (),
    optional: Mapping[str, float] | None = None,
    options: Mapping[str, float] | None = None,
) -> Loss:
    """Make a Loss of ``function(logprobs, inputs, **options)``, and try it on a sample datum.

    Args:
        name: what requests give as loss_fn; not a built-in loss's.
        function: takes ``logprobs`` (T,) float32 of the targets; ``inputs``, a dict of (T,) float32 arrays; and each
            option as a float32 scalar by keyword. Returns a scalar loss, or one per position (T,), or a tuple of
            that and a dict of scalar metrics.
        inputs: names of what every datum must bring in loss_fn_inputs.
        optional: names of what it may bring, with the value at every position where it does not.
        options: names of what a request may set in loss_fn_config, with their defaults.

    T is the padded width of a batch. ``inputs["mask"]`` is always there: 0 in padding, else 1, or what the datum
    brings as ``mask``. All other arrays are 0 in padding.

    Raises:
        LossError: names or defaults cannot be used; the function fails under ``jax.jit``, returns something else, is
            not finite on sample data, has no gradient, or depends on padding.
    """
    _check_declaration(name, function, inputs, optional or {}, options or {})
    defaults = dict(optional or {}) if "mask" in inputs else {"mask": 1.0} | dict(optional or {})
    readable, settings = (*inputs, *defaults), dict(options or {})

    def of_datum(logprobs: jax.Array, arrays: Mapping[str, jax.Array]) -> Terms:  # (T,) each
        chosen = {option: arrays[option][0] for option in settings}
        result = function(logprobs, {key: arrays[key] for key in readable}, **chosen)
        loss, metrics = result if isinstance(result, tuple) else (result, {})
        loss = jnp.asarray(loss, jnp.float32)
        spread = loss if loss.ndim else _at_first(loss, logprobs)
        named = {_metric_name(key): _at_first(value, logprobs) for key, value in metrics.items()}
        return Terms(spread, named, _at_first(1.0, logprobs))

    _check_result(name, function, readable, settings)
    loss = Loss(name, jax.vmap(of_datum), tuple(inputs), defaults, settings, alone=True)
    _check_values(loss)
    return loss


def _at_first(value: Any, like: jax.Array) -> jax.Array:
    return jnp.zeros_like(like).at[0].set(value)


def _metric_name(name: str) -> str:
    return name if ":" in name else f"{name}:mean"


# ------------------------------------------------------------------------------------ what is declared


def _check_declaration(
    name: str,
    function: UserFunction,
    inputs: Sequence[str],
    optional: Mapping[str, float],
    options: Mapping[str, float],
) -> None:
    _require(isinstance(name, str) and name.isidentifier(), f"{name!r} is no name: expected letters, digits and _")
    try:
        check_name(name)
    except ValueError as error:
        raise LossError(str(error)) from None
    _require(callable(function), f"{name}: expected a function, got {type(function).__name__}")
    _require(not isinstance(inputs, str), f"{name}: inputs is the text {inputs!r}: expected a list of names")
    names = [*inputs, *optional, *options]
    for key in names:
        _require(isinstance(key, str), f"{name}: {key!r} is no name of an input or an option")
        _require(names.count(key) == 1, f"{name}: {key!r} is named twice")
    _require("target_tokens" not in names, f"{name}: target_tokens cannot be read; a loss sees their logprobs")
    _require("mask" not in options, f"{name}: 'mask' is an input and cannot be an option")
    for key, default in {**optional, **options}.items():
        number = isinstance(default, int | float) and math.isfinite(default)
        _require(number, f"{name}: the default of {key!r} is {default!r}: expected a finite number")
    try:
        inspect.signature(function).bind(None, None, **dict.fromkeys(options))
    except (TypeError, ValueError) as error:
        raise LossError(f"{name}: it is called as fn(logprobs, inputs, **options), but {error}") from None


def _check_result(name: str, function: UserFunction, readable: Sequence[str], options: Mapping[str, float]) -> None:
    """Trace the function on a datum and look at what it returns."""
    row = jax.ShapeDtypeStruct((LENGTH,), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)

    def trace(names: Sequence[str]) -> Any:
        return jax.eval_shape(
            lambda logprobs, inputs, chosen: function(logprobs, inputs, **chosen),
            row,
            dict.fromkeys(names, row),
            dict.fromkeys(options, number),
        )

    try:
        result = trace(readable)
    except jax.errors.JAXTypeError as error:
        raise LossError(
            f"{name} cannot be traced by JAX: use jax.numpy in place of numpy, and jnp.where in place of if: {error}"
        ) from error
    except Exception as error:
        if isinstance(error, KeyError) and _is_input(error, trace, readable):
            raise LossError(f"{name} reads inputs[{error}], which is neither in inputs nor in optional") from error
        raise LossError(f"{name} fails on a datum of {LENGTH} tokens: {type(error).__name__}: {error}") from error
    pair = isinstance(result, tuple)
    _require(
        not pair or (len(result) == 2 and isinstance(result[1], Mapping)),
        f"{name} returns a tuple that is not (loss, dict of metrics)",
    )
    loss, metrics = result if pair else (result, {})
    usable = getattr(loss, "shape", None) in ((), (LENGTH,)) and jnp.issubdtype(loss.dtype, jnp.floating)
    _require(
        usable,
        f"{name} returns {_shown(loss)} from logprobs of shape ({LENGTH},): expected a float scalar, or one per token",
    )
    for key, value in metrics.items():
        plain = isinstance(key, str) and key.removesuffix(":sum").removesuffix(":mean")
        fit = plain and ":" not in plain and plain not in ("loss", "tokens")
        _require(bool(fit), f"{name}: no metric can be named {key!r}: expected name, name:mean or name:sum")
        _require(getattr(value, "shape", None) == (), f"{name}: metric {key!r} is {_shown(value)}: expected a scalar")


def _is_input(error: KeyError, trace: Callable[[Sequence[str]], Any], readable: Sequence[str]) -> bool:
    """Whether what a function misses is an input: with an input of that name it gets further."""
    name = error.args[0] if error.args else None
    if not isinstance(name, str) or name in readable:
        return False
    try:
        trace([*readable, name])
    except KeyError as again:
        return again.args != error.args
    except Exception:
        return True
    return True


def _shown(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__


# ------------------------------------------------------------------------------------ what it computes


def _check_values(loss: Loss) -> None:
    """Evaluate value and gradient on a sample datum, alone in its row and in padded ones."""
    exact, *padded = (_sample_values(loss, width) for width in (LENGTH, *WIDTHS))
    total, gradient, metrics = exact
    sample = f"on sample data ({LENGTH} tokens, logprobs -3 … 0, inputs 0.2 … 1)"
    _require(math.isfinite(total), f"{loss.name} is {total} {sample}")
    _require(bool(np.isfinite(gradient).all()), f"the gradient of {loss.name} is not finite {sample}")
    _require(bool(gradient.any()), f"{loss.name} has no gradient {sample}: it must depend on logprobs")
    for name, value in metrics.items():
        _require(math.isfinite(value), f"metric {name!r} of {loss.name} is {value} {sample}")
    for other in padded:
        same = jax.tree.map(lambda one, two: bool(np.allclose(one, two, TOLERANCE, TOLERANCE)), exact, other)
        _require(
            all(jax.tree.leaves(same)),
            f"{loss.name} depends on padding: weigh what is summed by inputs['mask'], as in "
            "(x * mask).sum() / mask.sum(), or return one loss per token",
        )


def _sample_values(loss: Loss, width: int) -> tuple[float, np.ndarray, dict[str, float]]:
    """Loss, gradient (LENGTH,) and metrics of the sample datum in a batch of ``width``, beside an empty row."""
    rng = np.random.default_rng(0)
    shape = (2, width)
    real = jnp.zeros(shape, bool).at[0, :LENGTH].set(True)

    def row(values: np.ndarray | float | None) -> jax.Array:
        return jnp.zeros(shape).at[0, :LENGTH].set(values)

    logprobs = row(-3 * rng.random(LENGTH))
    inputs = {name: row(0.2 + 0.8 * rng.random(LENGTH)) for name in loss.required}
    inputs |= {name: row(default) for name, default in {**loss.optional, **loss.options}.items()}
    if "logprobs" in inputs:
        inputs["logprobs"] = logprobs + row(0.1 * rng.standard_normal(LENGTH))

    def total(logprobs: jax.Array) -> tuple[jax.Array, Terms]:
        terms = apply(loss.function, logprobs, inputs, real)[1]
        return terms.loss.sum(), terms

    (value, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(logprobs)
    metrics = {name: float(values.sum()) for name, values in terms.metrics.items()}
    return float(value), np.asarray(gradient)[0, :LENGTH], metrics


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise LossError(message)
