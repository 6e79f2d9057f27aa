"""How fast this machine multiplies matrices, measured in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

BUDGET = 0.3  # seconds of measuring, each
QUEUED = 4  # products of XLA in one measurement: dispatch overlaps computation, as it does in a step


@dataclass(frozen=True, slots=True)
class MatmulRates:
    """FLOP/s of a lone product (m, k) x (k, n), best of many."""

    numpy: float  # float32
    xla: float  # in the model's dtype, on its device


def measure_rates(m: int, k: int, n: int, dtype: str) -> MatmulRates:
    """Multiply (m, k) by (k, n) with NumPy and XLA for a moment each."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
    x_device, w_device = (jnp.asarray(array, dtype) for array in (x, w))
    product = jax.jit(jnp.matmul)
    by_numpy = best_seconds(lambda: x @ w)
    by_xla = best_seconds(lambda: jax.block_until_ready([product(x_device, w_device) for _ in range(QUEUED)]))
    flops = 2 * m * k * n
    return MatmulRates(numpy=flops / by_numpy, xla=QUEUED * flops / by_xla)


def best_seconds(work: Callable[[], object], budget: float = BUDGET) -> float:
    """The shortest of as many runs of ``work`` as fit ``budget`` seconds, after one to warm up; two at least."""
    work()
    best, end = float("inf"), time.perf_counter() + budget
    runs = 0
    while runs < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best
