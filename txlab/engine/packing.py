"""Training sequences to device batches: a flat run of positions, cut into windows of a few widths.

A window holds sequences of one adapter, one after the other; segment ids keep them apart. Its layers cost what its
width costs, at its adapter's own rank, and its attention the blocks over which its sequences stretch. The head sees no
windows: ``head_slices`` gathers the positions that matter, of one adapter and loss, those that get a gradient apart
from those that do not. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, eq=False)
class _Filled:
    """A window before it has a place: its sequences in the order in which they lie."""

    width: int
    items: Sequence[Item]


def pack(items: Sequence[Item], budget: int, streams: int = 1) -> Iterator[TrainBatch]:
    """Lay ``items`` out in batches of ``budget`` positions; a longer sequence gets a batch of its own.

    Batches are left emptier where they would be fewer than ``streams``.
    """
    by_adapter = sorted(items, key=lambda item: (item.adapter, -len(item)))
    owned = [list(own) for _, own in groupby(by_adapter, key=lambda item: item.adapter)]
    positions = sum(window.width for own in owned for window in _windows(own, min(JOINED, _floor(budget))))
    room = min(budget, BLOCK * -(-positions // (streams * BLOCK)))
    batch: list[_Filled] = []
    used = 0
    for window in (window for own in owned for window in _windows(own, min(JOINED, _floor(room)))):
        if batch and used + window.width > room:
            yield _batch(batch, max(budget, used))
            batch, used = [], 0
        batch.append(window)
        used += window.width
    if batch:
        yield _batch(batch, max(budget, used))


def _windows(items: list[Item], most: int) -> Iterator[_Filled]:
    """First fit of one adapter's sequences, the longest first, into windows of ``most`` where none is longer."""
    while items:
        width = max(bucket(len(items[0])), min(most, bucket(_tokens(items))))
        fitting, rest = _fit(items, width)
        if not rest and len(items[0]) <= width // 2:
            first, second = _fit(items, width // 2)
            if _tokens(second) <= width // 4 and width // 4 >= MIN_WIDTH:  # half and a quarter do
                fitting, rest = first, second
        yield _Filled(bucket(_tokens(fitting), MIN_WIDTH), fitting)
        items = rest


def _floor(n: int) -> int:
    """The largest power of two that is at most ``n``."""
    return 1 << (n.bit_length() - 1)


def _fit(items: Sequence[Item], width: int) -> tuple[list[Item], list[Item]]:
    """Those that find room in ``width``, taken in order, and the others."""
    fitting: list[Item] = []
    rest: list[Item] = []
    for item in items:
        fits = len(item) <= width
        (fitting if fits else rest).append(item)
        width -= len(item) if fits else 0
    return fitting, rest


def _tokens(items: Iterable[Item]) -> int:
    return sum(map(len, items))


def _batch(filled: Sequence[_Filled], size: int) -> TrainBatch:
    tokens, positions, segment_ids = (np.zeros(size, np.int32) for _ in range(3))
    windows, placements = [], []
    start = 0
    for window in filled:
        starts = accumulate(map(len, window.items), initial=start)
        of_window = [Placement(item, at) for item, at in zip(window.items, starts, strict=False)]
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
