"""The requests that make, change and free adapters: what they do, and what the bus is told of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from txlab.engine.bus import EventBus
from txlab.engine.events import (
    AdapterCreated,
    AdapterRenamed,
    AdapterRewound,
    GradientDropped,
    StepCompleted,
    StepsKept,
)
from txlab.engine.kept_steps import KeptSteps
from txlab.engine.requests import (
    CopyAdapter,
    CreateAdapter,
    DropSnapshot,
    ExportAdapter,
    ForkAdapter,
    FreezeAdapter,
    ImportAdapter,
    LoadSnapshot,
    OptimStep,
    OptimStepResult,
    RenameAdapter,
    Request,
    RequestError,
    Result,
    RewindAdapter,
    TakeSnapshot,
    UnloadAdapter,
)
from txlab.engine.trainer import optim_step
from txlab.lora.adapter import Adapter, to_state
from txlab.lora.bank import AdapterBank

log = logging.getLogger(__name__)


class Adapters:
    """The adapters of an engine, their names, and the steps that are kept of them. The engine thread alone calls it.

    Knows nothing of order: what is queued or running for an adapter is the engine's business.
    """

    def __init__(self, bank: AdapterBank, kept: KeptSteps, bus: EventBus):
        self._bank = bank
        self._kept = kept
        self._bus = bus
        self._names: dict[str, str] = {}

    def __contains__(self, model_id: str) -> bool:
        """Whether there is such an adapter."""
        return model_id in self._bank

    def __iter__(self) -> Iterator[str]:
        """The ids of all that have a name."""
        return iter(self._names)

    def name(self, model_id: str) -> str:
        """What people call it; its id where it has no name."""
        return self._names.get(model_id) or model_id

    def carry_out(self, request: Request) -> Result:
        """Do it at once. RequestError or ValueError where that cannot be; then nothing has changed."""
        match request:
            case CreateAdapter():
                self._made(request.model_id, request.name, self._bank.create(request.model_id, request.lora))
            case ImportAdapter():
                self._import(request)
            case ForkAdapter():
                self._fork(request)
            case UnloadAdapter():
                self._unload(request.model_id)
            case RenameAdapter():
                self._rename(request)
            case RewindAdapter():
                self._rewind(request)
            case CopyAdapter() | ExportAdapter():
                return to_state(self._present(request.model_id), request.optimizer)
            case TakeSnapshot() | FreezeAdapter():
                self._present(request.model_id)
                self._bank.take_snapshot(request.snapshot_id, request.model_id)
            case LoadSnapshot():
                self._bank.load_snapshot(request.snapshot_id, request.state)
            case DropSnapshot():
                self._bank.drop_snapshot(request.snapshot_id)
        return None

    def address(self, model_id: str) -> str:
        """How a user calls it without a doubt: by its name, or by its id where others have that name, too."""
        name = self.name(model_id)
        return model_id if [*self._names.values()].count(name) > 1 else name

    def is_idle(self, request: OptimStep) -> bool:
        """Whether a step without a gradient would move nothing: there is neither momentum nor weight decay."""
        return self._present(request.model_id).moments is None and not request.adam.weight_decay

    def optim_step(self, request: OptimStep, marks_of: Callable[[float], tuple[str, ...]]) -> OptimStepResult:
        """Apply the accumulated gradient; ``marks_of`` its norm says what is remarkable about the step.

        RequestError where that cannot be; the gradient is dropped then, and nothing else has changed.
        """
        adapter = self._present(request.model_id)
        self._publish_kept(self._kept.keep(request.model_id, adapter))
        result = optim_step(adapter, request.adam)
        marks = marks_of(result.metrics["grad_norm"])
        for mark in marks:
            log.warning("step %d of adapter %r: %s", adapter.step, self.name(request.model_id), mark)
        self._bus.publish(
            StepCompleted(
                request.model_id,
                adapter.step,
                request.adam.learning_rate,
                result.metrics["grad_norm"],
                adapter.memory_bytes,
                marks,
            )
        )
        return result

    def drop_gradient(self, model_id: str) -> None:
        """Forget what was accumulated since the last step."""
        self._present(model_id).gradient = None
        self._bus.publish(GradientDropped(model_id))

    def _import(self, request: ImportAdapter) -> None:
        adapter = self._bank.load(request.model_id, request.state)
        self._kept.drop(request.model_id)  # of another training
        self._made(request.model_id, request.name, adapter)

    def _fork(self, request: ForkAdapter) -> None:
        source = self._state(request.source_id, request.step)
        if request.model_id in self._bank:
            raise RequestError(f"model {request.model_id!r} exists already: fork into a new one")
        self._made(request.model_id, request.name, self._bank.put(request.model_id, source))

    def _unload(self, model_id: str) -> None:
        self._bank.drop(model_id)
        self._kept.drop(model_id)
        self._names.pop(model_id, None)

    def _rename(self, request: RenameAdapter) -> None:
        self._present(request.model_id)
        self._names[request.model_id] = request.name
        self._bus.publish(AdapterRenamed(request.model_id, request.name))

    def _rewind(self, request: RewindAdapter) -> None:
        state = self._state(request.model_id, request.step)
        self._publish_kept(self._kept.keep(request.model_id, self._bank[request.model_id]))
        self._bank.put(request.model_id, state)
        self._bus.publish(AdapterRewound(request.model_id, request.step))

    def _present(self, model_id: str) -> Adapter:
        if model_id not in self._bank:
            raise RequestError(f"model {model_id!r} is not there: it is still being made, or was unloaded")
        return self._bank[model_id]

    def _state(self, model_id: str, step: int | None) -> Adapter:
        """An adapter as it is, or as it was at a kept step."""
        adapter = self._present(model_id)
        if step is None or step == adapter.step:
            return adapter
        try:
            return self._kept.get(model_id, step)
        except KeyError:
            kept = ", ".join(map(str, self._kept.steps(model_id))) or "none"
            raise RequestError(
                f"step {step} of adapter {self.name(model_id)!r} is not kept. It is at step {adapter.step}; "
                f"kept steps: {kept}. EngineSettings.kept_bytes says how much memory they may take."
            ) from None

    def _made(self, model_id: str, name: str, adapter: Adapter) -> None:
        self._names[model_id] = name
        self._bus.publish(AdapterCreated(model_id, name, adapter.lora, adapter.memory_bytes, adapter.step))

    def _publish_kept(self, model_ids: Iterable[str]) -> None:
        for model_id in model_ids:
            self._bus.publish(StepsKept(model_id, self._kept.steps(model_id), self._kept.bytes_of(model_id)))
