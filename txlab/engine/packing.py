"""Training sequences to device batches: rows of one width under a token budget, shapes from a small closed set.

Several short sequences share a row when they belong to the same adapter and their loss looks at one position at a
time; segment ids keep them apart. Rows, widths and targets per position are powers of two, so that a long trace of
requests compiles few programs. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from txlab.engine.losses import Loss
from txlab.engine.requests import Datum, RequestError

MIN_WIDTH = 16
FILL_WIDTH = 128  # short sequences are packed into rows of up to this width
TARGETS_OF_A_TOKEN = 64  # so many targets at a position weigh as much as the position itself


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One datum on its way to the device. ``owner`` identifies the request, ``adapter`` the stack's entry."""

    owner: int
    index: int
    adapter: int
    datum: Datum
    options: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.datum.tokens)

    @property
    def targets(self) -> int:
        """Targets per position."""
        return 1 if self.datum.targets.ndim == 1 else self.datum.targets.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where an item's tokens lie in a batch: ``[row, start : start + len(item)]``."""

    item: Item
    row: int
    start: int

    @property
    def span(self) -> tuple[int, slice]:
        """Index of the item's positions in a (B, T) array."""
        return self.row, slice(self.start, self.start + len(self.item))

    def cells(self, array: np.ndarray) -> np.ndarray:
        """View the item's part, (N,) or (N, K), of an array (B, T) or (B, T, bucket of K)."""
        return array[self.span][..., : self.item.targets] if array.ndim == 3 else array[self.span]


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """One device batch of B rows of T positions. Segment id 0 is padding.

    Where positions have K > 1 targets, ``targets`` and ``inputs`` are (B, T, K), 0 in what K was padded with.
    """

    tokens: np.ndarray  # (B, T) int32
    positions: np.ndarray  # (B, T) int32, from 0 in each segment
    segment_ids: np.ndarray  # (B, T) int32
    targets: np.ndarray  # (B, T) or (B, T, K) int32
    inputs: Mapping[str, np.ndarray]  # float32 of the same shape each; 0 in padding
    adapters: np.ndarray  # (B,) int32: each row's entry in the adapter stack
    placements: tuple[Placement, ...]


def bucket(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``n`` and ``least``."""
    return max(least, 1 << (n - 1).bit_length())


def pack(items: Sequence[Item], loss: Loss, budget: int) -> Iterator[TrainBatch]:
    """Lay ``items`` out in batches of at most ``budget`` tokens (one row at least), longest sequences first.

    RequestError where an item lacks an input of ``loss``.
    """
    for targets in sorted({bucket(item.targets) for item in items}):
        remaining = sorted((item for item in items if bucket(item.targets) == targets), key=len, reverse=True)
        while remaining:
            width = bucket(len(remaining[0]), MIN_WIDTH) if loss.alone else _width(remaining)
            most = budget // (width * max(1, targets // TARGETS_OF_A_TOKEN))
            rows, remaining = _fill(remaining, width, max(1, most), loss.alone)
            yield _batch(rows, (bucket(len(rows)), width), targets, loss)


def _width(items: Sequence[Item]) -> int:
    """Wide enough for the longest item; wider, up to FILL_WIDTH, where that lets short ones share a row."""
    tokens: dict[int, int] = {}
    for item in items:
        tokens[item.adapter] = tokens.get(item.adapter, 0) + len(item)
    return bucket(max(len(items[0]), min(FILL_WIDTH, max(tokens.values()))), MIN_WIDTH)


def _fill(items: Sequence[Item], width: int, max_rows: int, alone: bool) -> tuple[list[list[Item]], list[Item]]:
    """First fit: each item goes to the first row of its adapter with room. Also what found no row."""
    rows: list[list[Item]] = []
    room: list[int] = []
    left: list[Item] = []
    for item in items:
        fits = (r for r, row in enumerate(rows) if row[0].adapter == item.adapter and room[r] >= len(item))
        row = next(fits, None)
        if row is not None:
            rows[row].append(item)
            room[row] -= len(item)
        elif len(rows) < max_rows:
            rows.append([item])
            room.append(0 if alone else width - len(item))
        else:
            left.append(item)
    return rows, left


def _batch(rows: Sequence[Sequence[Item]], shape: tuple[int, int], k: int, loss: Loss) -> TrainBatch:
    cells = shape if k == 1 else (*shape, k)
    tokens, positions, segment_ids = (np.zeros(shape, np.int32) for _ in range(3))
    targets = np.zeros(cells, np.int32)
    inputs = {name: np.zeros(cells, np.float32) for name in loss.inputs}
    adapters = np.zeros(shape[0], np.int32)
    placements = []
    for r, row in enumerate(rows):
        adapters[r] = row[0].adapter
        start = 0
        for segment, item in enumerate(row, start=1):
            placement = Placement(item, r, start)
            at = placement.span
            tokens[at], positions[at], segment_ids[at] = item.datum.tokens, np.arange(len(item)), segment
            _write(placement.cells(targets), item.datum.targets)
            for name, array in inputs.items():
                _write(placement.cells(array), _input(name, item, loss))
            placements.append(placement)
            start += len(item)
    return TrainBatch(tokens, positions, segment_ids, targets, inputs, adapters, tuple(placements))


def _write(cells: np.ndarray, values: np.ndarray | float) -> None:
    """Fill ``cells`` (N,) or (N, K); values (N, 1) fit (N,), and one number fits all."""
    cells[...] = values.reshape(cells.shape) if isinstance(values, np.ndarray) else values


def _input(name: str, item: Item, loss: Loss) -> np.ndarray | float:
    """A datum's own values, else the request's option, else the default."""
    if name in item.datum.inputs:
        return item.datum.inputs[name]
    if name in item.options:
        return item.options[name]
    default = loss.optional.get(name, loss.options.get(name))
    if default is None:  # the request was validated, but for a loss that another has replaced since
        raise RequestError(f"data[{item.index}] lacks {name!r}, which {loss.name} needs")
    return default
