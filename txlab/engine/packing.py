"""Training sequences to device batches: a flat run of positions, cut into windows of a few widths.

A window holds sequences of one adapter; segment ids keep them apart. Each lies in a row of blocks of attention, as many
as a power of two, short sequences side by side, and rows are joined. A window's layers cost what its width costs, at
its adapter's own rank. The head sees no windows: ``head_slices`` gathers the positions that matter, of one adapter and
loss, those that get a gradient apart from those that do not. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import numpy as np

from txlab.engine.losses import FUSED_INPUTS, DatumLoss, Loss, fused_kind
from txlab.engine.requests import Datum, RequestError
from txlab.models.config import BLOCK

MIN_WIDTH = BLOCK // 2
JOINED = 4 * BLOCK  # the widest window of short sequences: larger products, fewer reads of the weights
HEAD_TOKENS = 128  # positions whose logits are alive together


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
    """The positions [start, start + width) of a batch, all of one adapter. ``reach``: see models.segments."""

    start: int
    width: int
    adapter: int
    reach: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """N positions of the device, of which the windows use the first. Segment id 0 is padding."""

    tokens: np.ndarray  # (N,) int32
    positions: np.ndarray  # (N,) int32, from 0 in each segment
    segment_ids: np.ndarray  # (N,) int32
    windows: tuple[Window, ...]
    placements: tuple[Placement, ...]

    @property
    def used(self) -> tuple[int, int]:
        """Tokens, and the positions of the windows that hold them."""
        return int(np.count_nonzero(self.segment_ids)), sum(window.width for window in self.windows)


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


@dataclass(slots=True, eq=False)
class _Row:
    """Sequences of one adapter that lie side by side."""

    blocks: int
    items: list[Item] = field(default_factory=list)
    used: int = 0

    def add(self, item: Item) -> None:
        self.items.append(item)
        self.used += len(item)


@dataclass(frozen=True, slots=True, eq=False)
class _Filled:
    """A window before it has a place: its rows in the order in which they lie."""

    width: int
    rows: Sequence[_Row]


def pack(items: Sequence[Item], budget: int, streams: int = 1) -> Iterator[TrainBatch]:
    """Lay ``items`` out in batches of ``budget`` positions; a longer sequence gets a batch of its own.

    Batches are left emptier where they would be fewer than ``streams``.
    """
    by_adapter = sorted(items, key=lambda item: (item.adapter, -len(item)))
    rows = [_rows(own) for _, own in groupby(by_adapter, key=lambda item: item.adapter)]
    share = BLOCK * -(-sum(row.blocks for own in rows for row in own) // streams)
    room = min(budget, share)
    batch: list[_Filled] = []
    used = 0
    for own in rows:
        for window in _windows(own, min(JOINED, _floor(room)) // BLOCK):
            if batch and used + window.width > room:
                yield _batch(batch, max(budget, used))
                batch, used = [], 0
            batch.append(window)
            used += window.width
    if batch:
        yield _batch(batch, max(budget, used))


def _windows(rows: Sequence[_Row], most: int) -> Iterator[_Filled]:
    """Windows of a power of two of blocks that the rows fill, of ``most`` where no row is longer."""
    for group in _fit(rows, most):
        while group:
            size = max(group[0].blocks, _floor(sum(row.blocks for row in group)))
            now = _fit(group, size)[0]
            group = [row for row in group if row not in now]
            yield _Filled(BLOCK * size if size > 1 else bucket(now[0].used, MIN_WIDTH), now)


def _rows(items: Iterable[Item]) -> list[_Row]:
    """First fit of the sequences, the longest first."""
    rows: list[_Row] = []
    for item in items:
        row = next((row for row in rows if row.blocks * BLOCK - row.used >= len(item)), None)
        if row is None:
            row = _Row(bucket(-(-len(item) // BLOCK)))
            rows.append(row)
        row.add(item)
    return rows


def _fit(rows: Sequence[_Row], most: int) -> list[list[_Row]]:
    """First fit of the rows, the longest first, into bins of ``most`` blocks; a longer one has a bin of its own."""
    bins: list[list[_Row]] = []
    free: list[int] = []
    for row in sorted(rows, key=lambda row: -row.blocks):
        number = next((n for n, left in enumerate(free) if left >= row.blocks), len(bins))
        if number == len(bins):
            bins.append([])
            free.append(most)
        bins[number].append(row)
        free[number] -= row.blocks
    return bins


def _floor(n: int) -> int:
    """The largest power of two that is at most ``n``."""
    return 1 << (n.bit_length() - 1)


def _batch(filled: Sequence[_Filled], size: int) -> TrainBatch:
    tokens, positions, segment_ids = (np.zeros(size, np.int32) for _ in range(3))
    windows, placements = [], []
    start = 0
    for window in filled:
        at, of_window = start, []
        for row in window.rows:
            ends = accumulate(map(len, row.items), initial=at)
            of_window += [Placement(item, begin) for item, begin in zip(row.items, ends, strict=False)]
            at += row.blocks * BLOCK
        for number, placement in enumerate(of_window):
            tokens[placement.span] = placement.item.datum.tokens
            positions[placement.span] = np.arange(len(placement.item))
            segment_ids[placement.span] = number + 1
        spans = [(p.span.start - start, p.span.stop - start) for p in of_window]
        windows.append(Window(start, window.width, of_window[0].item.adapter, _reach(spans, window.width)))
        placements += of_window
        start += window.width
    return TrainBatch(tokens, positions, segment_ids, tuple(windows), tuple(placements))


def _reach(spans: Sequence[tuple[int, int]], width: int) -> tuple[int, ...]:
    """For each block of queries of a window, over how many blocks of keys its sequences stretch, its own included."""
    reach = [1] * -(-width // BLOCK)
    for start, stop in spans:
        for block in range(start // BLOCK, (stop - 1) // BLOCK + 1):
            reach[block] = max(reach[block], block - start // BLOCK + 1)
    return tuple(reach)


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
            for first in range(0, len(chosen), HEAD_TOKENS):
                rows = chosen[first : first + HEAD_TOKENS]
                yield HeadSlice(
                    adapter=adapter,
                    kind=loss,
                    backward=backward,
                    index=_padded(index[rows], HEAD_TOKENS, size).astype(np.int32),
                    scored=_padded(owner[rows], HEAD_TOKENS, -1),
                    targets=_padded(targets[rows], HEAD_TOKENS, 0).astype(np.int32),
                    inputs={name: _padded(values[rows], HEAD_TOKENS, 0.0) for name, values in inputs.items()},
                )


def _padded(array: np.ndarray, length: int, value: float) -> np.ndarray:
    return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), value, array.dtype)])
