"""The next optimizer step of an adapter: what it would apply, and whether that is all that was sent for it.

Clients send a pass and its optimizer step together. Where the pass fails, or its gradient is dropped, the step behind
it must not act on what is left: it is refused, and so is every other until a pass of a later attempt succeeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

TOLD_SECONDS = 0.25  # how much later than the engine a client learns of a failed pass: what came before belongs to it

ZERO_GRADIENT = "zero gradient: no forward_backward since the last step"
CONSTANT_LOGITS = "logits are constant: learning rate too high?"
INTERRUPTED = "includes passes sent before an interrupt"


@dataclass(slots=True)
class _Break:
    """Why a step would be applied to a part of what was meant for it."""

    reason: str
    over: float  # what was sent later than that is another attempt
    dropped: bool  # a gradient is gone that its client was told of
    stepped: bool = False  # a step was refused for it: what comes behind that is another attempt, too

    def ends_before(self, sent: float) -> bool:
        return self.stepped or sent > self.over


class PendingStep:
    """State of the next optimizer step of one adapter. Times are of ``time.monotonic``."""

    def __init__(self) -> None:
        self._break: _Break | None = None
        self._clear()

    def _clear(self) -> None:
        self.passes = 0  # whose gradients are accumulated
        self.newest = -math.inf  # when the last of them was sent
        self._constant = True  # the logits of all of them
        self._interrupted = False

    def passed(self, sent: float, constant: bool) -> None:
        """The gradient of a pass was accumulated; all its logits were equal, or not."""
        if self._break is not None and self._break.ends_before(sent) and not self.passes:
            self._break = None
        self.passes += 1
        self.newest = max(self.newest, sent)
        self._constant &= constant

    def failed(self, sent: float, at: float, reason: str) -> None:
        """A pass failed at the time ``at``; its client is told TOLD_SECONDS later. The first failure stays."""
        if self._break is None or self._break.ends_before(sent):
            self._break = _Break(reason, at + TOLD_SECONDS, dropped=False)

    def dropped(self, at: float, reason: str) -> None:
        """The gradient, or passes on their way, were dropped by a user's command."""
        self._break = _Break(reason, at, dropped=True)
        self._clear()

    def refusal(self, sent: float, idle: bool) -> str | None:
        """Why a step must not run, if it must not. ``idle``: it has no momentum and no weight decay to move by.

        Where nothing was ever applied to an adapter, a client that knows of the failed pass may step: nothing moves.
        """
        broken = self._break
        if broken is None:
            return None
        harmless = idle and not self.passes and not broken.dropped and not broken.stepped and sent > broken.over
        return None if harmless else broken.reason

    def refused(self, reason: str) -> None:
        """A step did not run, and what was accumulated for it is gone."""
        if self.passes and self._break is None:
            self._break = _Break(reason, math.inf, dropped=True)
        if self._break is not None:
            self._break.stepped = True
        self._clear()

    def interrupt(self) -> None:
        """A user interrupted the program that waited for passes of this step."""
        self._interrupted = True

    def stepped(self, grad_norm: float) -> tuple[str, ...]:
        """The step ran. Returns what is remarkable about it."""
        marks = {
            ZERO_GRADIENT: not self.passes,
            CONSTANT_LOGITS: self.passes and self._constant and grad_norm == 0,
            INTERRUPTED: self.passes and self._interrupted,
        }
        self._break = None
        self._clear()
        return tuple(mark for mark, there in marks.items() if there)


def uniform(logprobs: Iterable[np.ndarray], vocab_size: int) -> bool:
    """Whether every logprob is that of a uniform distribution, as it is where all logits are equal."""
    expected = -math.log(vocab_size)
    return all(np.isclose(one.flat[:1], expected).all() and np.isclose(one, expected).all() for one in logprobs)
