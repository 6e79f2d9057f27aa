"""The adapters of one sampling batch, in one of two layouts, and which of them each row goes through.

Few columns lie side by side along the rank: one product reads each adapter once, for all rows, and a row keeps the
columns that are its own. That computes every row with every adapter, so where the ranks sum up to more, adapters are
stacked, rows are sorted by adapter, and each adapter computes its own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Sharding

from txlab.lora.adapter import HEAD, Adapter, Factors, Weights

MIN_RANK = 8  # fewer columns are padded, so that few programs are compiled
SIDE_BY_SIDE = 64  # columns, at most


class Columns(NamedTuple):
    """Rows of a batch among adapters that lie side by side."""

    kept: Array | np.ndarray  # (B, R) float32: 1 where a column is the row's own, 0 elsewhere


class Slots(NamedTuple):
    """Rows of a batch, sorted by stacked adapters."""

    rows: Array | np.ndarray  # (G, n) int32: the rows of each adapter; what is left over is row 0
    places: Array | np.ndarray  # (B,) int32: where a row is among the G * n; G * n: nowhere


Routes = Columns | Slots | None
"""Which adapter each row of a batch goes through; None: all through the only one."""


class AdapterSet(NamedTuple):
    """Some adapters, layer by layer, scales included; the rank is the first axis of both factors.

    Alone or side by side: a (R, in) and b (R, out), with R the sum of ranks, rounded up. Stacked: a (G, r, in) and
    b (G, r, out), with G their number and r the highest rank, rounded up.
    """

    layers: tuple[Weights, ...]
    head: Factors | None
    owner: np.ndarray  # (R,) or (G,) int32: which entry a column, or a stacked adapter, belongs to; -1: none
    alone: bool
    stacked: bool

    def routes(self, entries: Sequence[int]) -> Routes:
        """Of rows with these entries; what owns nothing goes through the base alone."""
        if self.alone:
            return None
        own = (self.owner[:, None] == np.array(entries)) & (self.owner >= 0)[:, None]  # (R or G, B)
        return _slots(own) if self.stacked else Columns(own.T.astype(np.float32))


def combine(adapters: Sequence[Adapter | None], depth: int, placement: Sharding) -> AdapterSet | None:
    """The adapter set of a batch, of a base with ``depth`` layers; None for the base alone.

    The base owns nothing, and what is added to round up is zeros. Laid out on the host: as fast there as by a program,
    and none is compiled for each mixture of ranks.
    """
    entries = [entry for entry, adapter in enumerate(adapters) if adapter is not None]
    present = [adapter for adapter in adapters if adapter is not None]
    if not present:
        return None
    alone, ranks = len(adapters) == 1, [adapter.lora.rank for adapter in present]
    stacked = len(present) > 1 and sum(ranks) > SIDE_BY_SIDE
    widths = [_rounded(max(ranks))] * len(present) if stacked else ranks
    starts = [sum(widths[:i]) for i in range(len(widths))]
    size = widths[0] * _power_of_two(len(present)) if stacked else _rounded(sum(ranks))
    owner = np.full(size, -1, np.int32)
    owner[: sum(widths)] = np.repeat(entries, widths)
    names = dict.fromkeys(name for adapter in present for name in adapter.weights)
    layout = {name: _in_columns(name, present, starts, size) for name in names}
    if stacked:
        layout = {name: Factors(*(_split(array, widths[0]) for array in factors)) for name, factors in layout.items()}
        owner = owner[:: widths[0]]
    elif not alone:  # 0 times what is not finite would be NaN in the rows of the others
        for array in jax.tree.leaves(layout):
            np.nan_to_num(array, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    head = layout.pop(HEAD, None)
    layers = tuple({name: Factors(a[layer], b[layer]) for name, (a, b) in layout.items()} for layer in range(depth))
    layers, head = jax.device_put((layers, head), placement)
    return AdapterSet(layers, head, owner, alone, stacked)


def _in_columns(name: str, adapters: Sequence[Adapter], starts: Sequence[int], size: int) -> Factors:
    """Of one projection, a (..., size, in) and b (..., size, out): each adapter's from its start on, if it has some."""
    like = next(adapter.weights[name] for adapter in adapters if name in adapter.weights)
    a = np.zeros((*like.a.shape[:-2], size, like.a.shape[-2]), np.float32)
    b = np.zeros((*like.b.shape[:-2], size, like.b.shape[-1]), np.float32)
    for adapter, start in zip(adapters, starts, strict=True):
        if name in adapter.weights:
            here = slice(start, start + adapter.lora.rank)
            a[..., here, :] = np.asarray(adapter.weights[name].a).swapaxes(-1, -2)
            b[..., here, :] = np.asarray(adapter.weights[name].b) * np.float32(adapter.scale)
    return Factors(a, b)


def _split(array: np.ndarray, width: int) -> np.ndarray:
    """(..., G * width, n) -> (..., G, width, n)."""
    return array.reshape(*array.shape[:-2], -1, width, array.shape[-1])


def _slots(own: np.ndarray) -> Slots:
    """From whether a row is an adapter's own, (G, B)."""
    adapters, batch = own.shape
    size = min(batch, _power_of_two(int(own.sum(axis=1).max()), step=2))  # few sizes, since each is a program
    rows, places = np.zeros((adapters, size), np.int32), np.full(batch, adapters * size, np.int32)
    for slot, row_is_own in enumerate(own):
        members = np.flatnonzero(row_is_own)
        rows[slot, : len(members)] = members
        places[members] = slot * size + np.arange(len(members))
    return Slots(rows, places)


def _rounded(rank: int) -> int:
    return max(MIN_RANK, _power_of_two(rank))


def _power_of_two(least: int, step: int = 1) -> int:
    """The smallest power of 2**step that is no less."""
    exponent = max(least - 1, 0).bit_length()
    return 1 << -(-exponent // step) * step
