"""What all benchmarks measure and print with: matmul rates, peak memory, tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence


def numpy_matmul_gflops(size: int = 1024) -> float:
    """GFLOP/s of NumPy's float32 product of two square matrices: how fast the machine is at this moment."""
    import numpy as np

    a = np.ones((size, size), np.float32)
    return 2 * size**3 / best(lambda: a @ a, tries=10) / 1e9


def xla_matmul_gflops(rows: int = 1024, n_in: int = 576, n_out: int = 1536) -> float:
    """GFLOP/s of a lone jitted float32 product; by default the default model's gate for 1,024 tokens."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.dot)
    x, w = jnp.ones((rows, n_in), jnp.float32), jnp.ones((n_in, n_out), jnp.float32)
    return 2 * rows * n_in * n_out / best(lambda: product(x, w).block_until_ready(), tries=10) / 1e9


def best(work: Callable[[], object], tries: int = 3) -> float:
    """Seconds of the fastest of some tries, after one to warm up."""
    work()
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def peak_gb() -> float | None:
    """Largest resident memory of this process so far, in 10^9 bytes; None on Windows, which does not say."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def table(header: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """Aligned text: the first column to the left, numbers with two decimals to the right, None as a dash."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    columns = [_aligned(column, str.rjust if i else str.ljust) for i, column in enumerate(zip(*cells, strict=True))]
    return "\n".join(map("  ".join, zip(*columns, strict=True)))


def _aligned(column: Sequence[str], justify: Callable[[str, int], str]) -> list[str]:
    width = max(map(len, column))
    return [justify(cell, width) for cell in column]


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.2f}"
