"""The files of expired checkpoints go: at the first request that is about any, and once an hour from then on.

Nobody sees an expired checkpoint, swept or not, and none lives for less than an hour, so that nothing is gained by
looking more often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from txlab.store.checkpoint_info import CheckpointError

log = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0


class ExpirySweep:
    """Calls ``tidy`` now and then. All methods run on the server's event loop."""

    def __init__(self, tidy: Callable[[], Awaitable[None]]):
        self._tidy = tidy
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Sweep, and go on with it; a second call does nothing."""
        if self._timer is None:
            self._sweep()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SWEEP_SECONDS, self._sweep)
        self._task = loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._tidy()
        except CheckpointError as error:
            log.warning("expired checkpoints stay: %s", error)
