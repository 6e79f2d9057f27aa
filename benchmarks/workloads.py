"""What ``benchmarks/train.py`` measures: kinds of work, and their goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

RANK = 32
LONG_TOKENS = 2048  # work of more tokens takes a peer half a minute and more


@dataclass(frozen=True, slots=True)
class Work:
    """One round: adapter i, of rank ``ranks[i]``, passes over sequences of ``lengths[i]`` tokens, then steps."""

    name: str
    ranks: Sequence[int]
    lengths: Sequence[Sequence[int]]
    backward: bool = True  # False: a forward pass alone, and no step

    @property
    def tokens(self) -> int:
        """Of all adapters, without padding."""
        return sum(map(sum, self.lengths))

    def texts(self, vocab_size: int, seed: int = 0) -> list[list[np.ndarray]]:
        """Random token ids of each adapter's sequences, int64 of shape (length + 1,): the last is a target only."""
        rng = np.random.default_rng(seed)
        return [[rng.integers(vocab_size, size=n + 1) for n in lengths] for lengths in self.lengths]


@dataclass(frozen=True, slots=True)
class Row:
    """Work with what it is compared with: a peer's speed, and the cost of other rows measured in turn with it."""

    work: Work
    goal: float | None = None  # least ratio of tokens/s to the peer's
    peer: bool = True  # whether the peer does it too
    cost_of: Mapping[str, float] = field(default_factory=dict)  # its seconds should be this sum of other rows'
    cost_goal: float | None = None  # largest ratio to that sum

    @property
    def name(self) -> str:
        return self.work.name


def even(name: str, sequences: int, length: int, *, adapters: int = 1, rank: int = RANK, backward: bool = True) -> Work:
    """Sequences of one length, dealt out evenly to adapters of one rank."""
    return Work(name, (rank,) * adapters, ((length,) * (sequences // adapters),) * adapters, backward)


def ragged(name: str, sequences: int = 32, shortest: int = 16, longest: int = 512, seed: int = 0) -> Work:
    """One adapter's sequences of log-uniform lengths, the same for the same seed."""
    drawn = np.exp(np.random.default_rng(seed).uniform(np.log(shortest), np.log(longest), sequences))
    return Work(name, (RANK,), (tuple(int(n) for n in drawn.round()),))


def groups() -> tuple[tuple[Row, ...], ...]:
    """All rows; those of a group are measured in turn, by the same processes."""
    mixed = (4, 8, 12, 16, 24, 32, 48, 64)
    low, high = mixed[0], mixed[-1]
    to_high = (sum(mixed) / len(mixed) - low) / (high - low)  # cost is linear in the rank
    return (
        (Row(even("8x64", 8, 64), goal=1.35),),
        (
            Row(even("8x128", 8, 128), goal=1.25),
            Row(even("4-adapters", 8, 128, adapters=4), cost_of={"8x128": 1.0}),
            Row(even("8-adapters", 8, 128, adapters=8), goal=2.0, cost_of={"8x128": 1.0}, cost_goal=1.15),
        ),
        (Row(even("8x512", 8, 512), goal=1.65),),
        (Row(even("forward", 8, 128, backward=False), goal=1.27),),
        (
            Row(even("64x64", 64, 64, rank=8)),
            Row(even("64-adapters", 64, 64, adapters=64, rank=8), cost_of={"64x64": 1.0}, cost_goal=1.3),
        ),
        (
            Row(even(f"rank-{low}", 8, 128, adapters=8, rank=low), peer=False),
            Row(even(f"rank-{high}", 8, 128, adapters=8, rank=high), peer=False),
            Row(
                Work("mixed-ranks", mixed, ((128,),) * len(mixed)),
                peer=False,
                cost_of={f"rank-{low}": 1 - to_high, f"rank-{high}": to_high},
                cost_goal=1.2,
            ),
        ),
        (Row(ragged("ragged"), goal=2.0),),
    )
