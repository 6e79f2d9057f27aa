"""Which cells of a sparse matrix are listed: the index half of the CSR format, whatever carries it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from txlab.engine.requests import RequestError


@dataclass(frozen=True, slots=True, eq=False)
class Csr:
    """The listed cells of a matrix of R rows, row by row."""

    starts: np.ndarray  # (R + 1,) int64: the first cell of each row, then their number
    columns: np.ndarray  # (cells,) int64, ascending in each row

    @property
    def rows(self) -> np.ndarray:  # (cells,) int64
        """The row of each cell."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def spread(self, values: np.ndarray, width: int, empty: int) -> np.ndarray:  # (R, width)
        """Put ``values`` (cells,) in their places; ``empty`` is everywhere else."""
        dense = np.full((len(self.starts) - 1, width), empty, values.dtype)
        dense[self.rows, self.columns] = values
        return dense

    def collect(self, dense: np.ndarray) -> np.ndarray:  # (cells,)
        """Read the listed cells of a (R, K) array."""
        return dense[self.rows, self.columns]


def read_csr(starts: np.ndarray, columns: np.ndarray, shape: tuple[int, int], where: str) -> Csr:
    """Check the indices of a matrix of ``shape``; RequestError names ``where`` they were found."""
    rows, width = shape
    if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != len(columns) or (np.diff(starts) < 0).any():
        raise RequestError(
            f"{where} is no CSR matrix: expected {rows + 1} row starts that rise from 0 to {len(columns)}"
        )
    csr = Csr(starts, columns)
    same_row = np.diff(csr.rows) == 0
    if (columns < 0).any() or (columns >= width).any() or (np.diff(columns)[same_row] <= 0).any():
        raise RequestError(f"{where} is no CSR matrix: expected columns 0 … {width - 1} that rise within each row")
    return csr
