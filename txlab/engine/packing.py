"""Training sequences to device batches: a flat run of positions, cut into windows of a few widths.

A window holds sequences of one adapter, short ones together; segment ids keep them apart. Its layers cost what its
width costs, at its adapter's own rank. The head sees no windows: ``head_slices`` gathers the positions that matter, of
one adapter and loss, those that get a gradient apart from those that do not. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from txlab.engine.losses import FUSED_INPUTS, DatumLoss, Loss, fused_kind
from txlab.engine.requests import Datum, RequestError

MIN_WIDTH = 64
FILL_WIDTH = 128  # short sequences are packed into windows of up to this width
HEAD_TOKENS = 128  # positions whose logits are alive together
SLICES = (64, HEAD_TOKENS)  # the last slice takes the fewest that hold what is left


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One datum on its way to the device. ``owner`` identifies the request, ``adapter`` the run's adapter."""

    owner: int
    index: int
    adapter: int
    datum: Datum
    loss: Loss | DatumLoss
    options: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.datum.tokens)

    def inputs(self, loss: Loss) -> dict[str, np.ndarray | float]:
        """What ``loss`` reads: the datum's own values, else the request's options, else defaults. RequestError."""
        return {name: self._input(name, loss) for name in loss.inputs}

    def _input(self, name: str, loss: Loss) -> np.ndarray | float:
        if name in self.datum.inputs:
            return self.datum.inputs[name]
        if name in self.options:
            return self.options[name]
        default = loss.optional.get(name, loss.options.get(name))
        if default is None:  # the request was validated, but for a loss that another has replaced since
            raise RequestError(f"data[{self.index}] lacks {name!r}, which {loss.name} needs")
        return default


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where an item's tokens lie in a batch: from ``start`` on."""

    item: Item
    start: int

    @property
    def span(self) -> slice:
        """Index of the item's positions in a (N,) array."""
        return slice(self.start, self.start + len(self.item))


@dataclass(frozen=True, slots=True)
class Window:
    """The positions [start, start + width) of a batch, all of one adapter."""

    start: int
    width: int
    adapter: int


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """N positions of the device, of which the windows use the first. Segment id 0 is padding."""

    tokens: np.ndarray  # (N,) int32
    positions: np.ndarray  # (N,) int32, from 0 in each segment
    segment_ids: np.ndarray  # (N,) int32
    windows: tuple[Window, ...]
    placements: tuple[Placement, ...]

    @property
    def padding(self) -> float:
        """Share of the windows' positions that hold no token."""
        return 1 - np.count_nonzero(self.segment_ids) / sum(window.width for window in self.windows)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What the head is asked of one item: a fused loss, its inputs, and whether its gradient is wanted."""

    placement: Placement
    loss: Loss
    inputs: Mapping[str, np.ndarray | float]
    backward: bool

    @property
    def columns(self) -> int:
        """Targets per position, rounded up; 0: one, without an axis of its own."""
        targets = self.placement.item.datum.targets
        return 0 if targets.ndim == 1 or targets.shape[1] == 1 else bucket(targets.shape[1])

    def cells(self, values: np.ndarray | float) -> np.ndarray:
        """``values`` for each position, (n,) or (n, columns), 0 in the columns that were added."""
        values = np.asarray(values)
        length, columns = len(self.placement.item), self.columns
        if not columns:
            return np.broadcast_to(values.reshape(-1), length)
        cells = np.zeros((length, columns), values.dtype)
        cells[:, : self.placement.item.datum.targets.shape[1]] = values
        return cells

    def has_gradient(self) -> np.ndarray:
        """Which positions (n,) get a gradient."""
        shape = len(self.placement.item)
        if not self.backward or self.loss.gate is None:
            return np.full(shape, self.backward)
        gate = self.cells(self.inputs[self.loss.gate]) != 0
        return gate.any(axis=1) if self.columns else gate


@dataclass(frozen=True, slots=True, eq=False)
class HeadSlice:
    """S positions of one adapter and one fused loss; what lies beyond those that are asked for is padding."""

    adapter: int
    kind: int  # of the fused losses
    backward: bool
    index: np.ndarray  # (S,) int32 into the batch; N is padding
    scored: np.ndarray  # (S,) int32, whose position it is; -1 is padding
    targets: np.ndarray  # (S,) or (S, K) int32
    inputs: Mapping[str, np.ndarray]  # float32 of the same shape each; 0 in padding


def bucket(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``n`` and ``least``."""
    return max(least, 1 << (n - 1).bit_length())


def pack(items: Sequence[Item], budget: int) -> Iterator[TrainBatch]:
    """Lay ``items`` out in batches of ``budget`` positions; a longer sequence gets a batch of its own."""
    batch: list[tuple[int, list[Item]]] = []
    used = 0
    for width, row in _rows(items):
        if batch and used + width > budget:
            yield _batch(batch, max(budget, used))
            batch, used = [], 0
        batch.append((width, row))
        used += width
    if batch:
        yield _batch(batch, max(budget, used))


def _rows(items: Sequence[Item]) -> Iterator[tuple[int, list[Item]]]:
    """What each window holds, and its width: first fit, adapter by adapter, the longest sequences first."""
    by_adapter = sorted(items, key=lambda item: (item.adapter, -len(item)))
    for _, group in groupby(by_adapter, key=lambda item: item.adapter):
        own = list(group)
        left = sum(len(item) for item in own)
        rows: list[list[Item]] = []
        widths: list[int] = []
        room: list[int] = []
        for item in own:
            row = next((r for r, free in enumerate(room) if free >= len(item)), None)
            if row is None:
                row, width = len(rows), bucket(max(len(item), min(FILL_WIDTH, left)), MIN_WIDTH)
                rows.append([])
                widths.append(width)
                room.append(width)
            rows[row].append(item)
            room[row] -= len(item)
            left -= len(item)
        for width, row_items, free in zip(widths, rows, room, strict=True):
            yield bucket(width - free, MIN_WIDTH), row_items


def _batch(rows: Sequence[tuple[int, list[Item]]], size: int) -> TrainBatch:
    tokens, positions, segment_ids = (np.zeros(size, np.int32) for _ in range(3))
    windows, placements = [], []
    start = 0
    for width, row in rows:
        windows.append(Window(start, width, row[0].adapter))
        at = start
        for segment, item in enumerate(row, start=1):
            placement = Placement(item, at)
            span = placement.span
            tokens[span], positions[span], segment_ids[span] = item.datum.tokens, np.arange(len(item)), segment
            placements.append(placement)
            at += len(item)
        start += width
    return TrainBatch(tokens, positions, segment_ids, tuple(windows), tuple(placements))


def head_slices(scored: Sequence[Scored], size: int) -> Iterator[HeadSlice]:
    """The positions of ``scored``, of a batch of ``size``, in slices of one adapter, loss, K and need of a gradient."""

    def kind(number: int) -> tuple[int, int, int]:
        part = scored[number]
        return part.placement.item.adapter, fused_kind(part.loss), part.columns

    for (adapter, loss, columns), members in groupby(sorted(range(len(scored)), key=kind), key=kind):
        numbers = list(members)
        parts = [scored[number] for number in numbers]
        lengths = [len(part.placement.item) for part in parts]
        owner = np.repeat(np.array(numbers, np.int32), lengths)
        index = np.concatenate([np.arange(p.placement.span.start, p.placement.span.stop) for p in parts])
        targets = np.concatenate([p.cells(p.placement.item.datum.targets) for p in parts])
        inputs = {
            name: np.concatenate([p.cells(np.asarray(p.inputs.get(name, 0.0), np.float32)) for p in parts])
            for name in (("weights",) if columns else FUSED_INPUTS)
        }
        needed = np.concatenate([part.has_gradient() for part in parts])
        for backward in (True, False):
            chosen = np.flatnonzero(needed == backward)
            for first in range(0, len(chosen), SLICES[-1]):
                rows = chosen[first : first + SLICES[-1]]
                length = next(s for s in SLICES if s >= len(rows))
                yield HeadSlice(
                    adapter=adapter,
                    kind=loss,
                    backward=backward,
                    index=_padded(index[rows], length, size).astype(np.int32),
                    scored=_padded(owner[rows], length, -1),
                    targets=_padded(targets[rows], length, 0).astype(np.int32),
                    inputs={name: _padded(values[rows], length, 0.0) for name, values in inputs.items()},
                )


def _padded(array: np.ndarray, length: int, value: float) -> np.ndarray:
    return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), value, array.dtype)])
