"""How busy the engine is and what its memory holds, published whenever that changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

from txlab.config import EngineSettings
from txlab.engine.events import EngineLoad
from txlab.engine.kept_steps import KeptSteps
from txlab.engine.sampler import Sampler
from txlab.engine.scheduler import Scheduler
from txlab.lora.adapter import Adapter, tree_bytes
from txlab.lora.bank import AdapterBank
from txlab.models.base import BaseModel

INTERVAL = 0.25  # seconds between two looks while the engine is busy, at least


class LoadMeter:
    """Looks at the parts of one engine, on its thread, and publishes what has changed."""

    def __init__(
        self,
        base: BaseModel,
        bank: AdapterBank,
        scheduler: Scheduler,
        sampler: Sampler,
        kept: KeptSteps,
        settings: EngineSettings,
        publish: Callable[[EngineLoad], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._base, self._bank, self._scheduler, self._sampler, self._kept = base, bank, scheduler, sampler, kept
        self._settings = settings
        self._publish = publish
        self._clock = clock
        self._told = EngineLoad()
        self._due = 0.0  # by the clock
        self._weight_bytes: WeakKeyDictionary[Adapter, int] = WeakKeyDictionary()

    def tell(self, resting: bool) -> None:
        """Publish the load if it changed; in a busy loop only now and then, and surely before the engine rests."""
        now = self._clock()
        if now < self._due and not resting:
            return
        self._due = now + INTERVAL
        load = self.measure()
        if load != self._told:
            self._told = load
            self._publish(load)

    def measure(self) -> EngineLoad:
        """The load at this moment."""
        rows, _, waiting = self._sampler.occupancy
        return EngineLoad(
            queued=self._scheduler.total_queued,
            rows=rows,
            max_rows=self._settings.sample_rows,
            waiting_rows=waiting,
            cache_bytes=self._sampler.cache_bytes,
            max_cache_bytes=self._settings.cache_bytes,
            device_bytes=max(self._counted_bytes(), self._reported_bytes()),
            host_bytes=self._kept.host_bytes,
        )

    def _counted_bytes(self) -> int:
        """Base, adapters, snapshots and what the sampler holds; what several share counts once."""
        trees = {}
        for adapter in self._bank.held:
            size = self._size(adapter)
            trees[id(adapter.weights)] = size
            if adapter.gradient is not None:
                trees[id(adapter.gradient)] = size
            if adapter.moments is not None:
                trees[id(adapter.moments)] = 2 * size
        return self._base.memory_bytes + self._sampler.memory_bytes + sum(trees.values())

    def _size(self, adapter: Adapter) -> int:
        """Bytes of its weights, and so of its gradient and of each moment; they never change, so are counted once."""
        if adapter not in self._weight_bytes:
            self._weight_bytes[adapter] = tree_bytes(adapter.weights)
        return self._weight_bytes[adapter]

    def _reported_bytes(self) -> int:
        """What the devices say is in use, activations too; 0 where they do not say, as CPUs."""
        reports = (device.memory_stats() for device in self._base.mesh.local_devices)
        return sum(report.get("bytes_in_use", 0) for report in reports if report)
