"""A run of forward and forward_backward requests through the device, one micro-batch at a time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from txlab.engine.losses import LOSSES, DatumLoss, DatumLossValue, Loss, Losses
from txlab.engine.packing import Item, Placement, TrainBatch, bucket, pack
from txlab.engine.requests import Datum, ForwardBackward, ForwardBackwardResult, RequestError
from txlab.engine.scheduler import Ticket
from txlab.engine.trainer import PassOutput, Trainer, accumulate
from txlab.lora.adapter import Adapter, Weights
from txlab.lora.bank import AdapterBank
from txlab.lora.linear import combine, entry_gradient

CROSS_ENTROPY = LOSSES["cross_entropy"]


@dataclass(frozen=True, slots=True, eq=False)
class DatumOutput:
    """What a pass found out about one datum. ``metrics`` are sums over it, and ``count`` what means divide by."""

    logprobs: np.ndarray  # (N,) or (N, K) float32, as its targets
    loss: float
    metrics: Mapping[str, float]
    count: float


class PassRun:
    """Passes of one group (same loss, all backward or none) that share device batches.

    Nothing is changed until ``commit``: a run that fails half-way leaves every adapter's gradient as it was.
    """

    def __init__(self, tickets: Sequence[Ticket], bank: AdapterBank, trainer: Trainer, losses: Losses, budget: int):
        self.tickets = tuple(tickets)
        self._requests = [_request(ticket) for ticket in tickets]
        self._trainer = trainer
        self._models = list(dict.fromkeys(request.model_id for request in self._requests))
        self._adapters: list[Adapter] = [bank[model_id] for model_id in self._models]
        self._set = combine(self._adapters, bucket(len(self._adapters)))
        self._backward, name = tickets[0].group
        self._loss = _find(losses, name)
        traced = self._loss if isinstance(self._loss, Loss) else CROSS_ENTROPY
        self._batches: Iterator[TrainBatch] = pack(self._items(), traced, budget)
        self._outputs: dict[tuple[int, int], DatumOutput] = {}
        self._gradients: list[Weights | None] = [None] * len(self._models)
        self._started = time.monotonic()

    def step(self) -> bool:
        """Run the next micro-batch. False where none was left."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        if isinstance(self._loss, Loss):
            self._keep(self._run(self._loss, batch, self._backward), batch)
        else:
            self._evaluate(self._loss, batch)
        return True

    def commit(self) -> None:
        """Add the run's gradients to those that the adapters have accumulated."""
        for adapter, gradient in zip(self._adapters, self._gradients, strict=True):
            if gradient is not None:
                adapter.gradient = accumulate(adapter.gradient, gradient)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started

    def results(self) -> list[ForwardBackwardResult]:
        """One result per ticket."""
        return [self._result(owner, request) for owner, request in enumerate(self._requests)]

    def _items(self) -> list[Item]:
        return [
            Item(owner, index, self._models.index(request.model_id), self._fed(datum), request.loss_config)
            for owner, request in enumerate(self._requests)
            for index, datum in enumerate(request.data)
        ]

    def _fed(self, datum: Datum) -> Datum:
        """What the device gets of a datum: inputs of a loss on the host stay there."""
        return datum if isinstance(self._loss, Loss) else replace(datum, inputs={})

    def _run(self, loss: Loss, batch: TrainBatch, backward: bool) -> PassOutput:
        """One program; its gradients, if any, are added to those of the run."""
        assert self._set is not None, "a pass has an adapter"
        if not backward:
            return self._trainer.forward(self._set, batch, loss)
        output, gradient = self._trainer.forward_backward(self._set, batch, loss)
        for entry in {placement.item.adapter for placement in batch.placements}:
            own = entry_gradient(gradient, self._adapters[entry], entry, self._set.stacked)
            self._gradients[entry] = accumulate(self._gradients[entry], own)
        return output

    def _evaluate(self, loss: DatumLoss, batch: TrainBatch) -> None:
        """Forward, the loss of each datum on the host, and its gradient back through cross_entropy.

        d(-w * lp) / d lp = -w, so weights that are the negative gradient carry it to the adapter. The second forward
        is the price of not keeping activations between programs, which would copy the base weights they refer to.
        """
        output = self._run(CROSS_ENTROPY, batch, backward=False)
        weights = np.zeros_like(output.logprobs)
        for placement in batch.placements:
            item = placement.item
            datum = self._requests[item.owner].data[item.index]
            logprobs = _logprobs(output, placement)
            value = evaluate(loss, logprobs, datum, item.index)
            placement.cells(weights)[...] = -value.gradient.reshape(placement.cells(weights).shape)
            self._outputs[item.owner, item.index] = DatumOutput(logprobs, value.loss, value.metrics, 1.0)
        if self._backward:
            self._run(CROSS_ENTROPY, replace(batch, inputs={"weights": weights}), backward=True)

    def _keep(self, output: PassOutput, batch: TrainBatch) -> None:
        for placement in batch.placements:
            item, span = placement.item, placement.span
            self._outputs[item.owner, item.index] = DatumOutput(
                _logprobs(output, placement),
                _sum(output.loss[span]),
                {name: _sum(values[span]) for name, values in output.metrics.items()},
                0.0 if output.counts is None else _sum(output.counts[span]),
            )

    def _result(self, owner: int, request: ForwardBackward) -> ForwardBackwardResult:
        outputs = [self._outputs[owner, index] for index in range(len(request.data))]
        for index, output in enumerate(outputs):
            if not math.isfinite(output.loss):
                raise RequestError(
                    f"the {request.loss} loss of data[{index}] is {output.loss}: its inputs are too large or too far "
                    "from the model's logprobs, or the adapter has diverged"
                )
        tokens = float(sum(len(datum.tokens) for datum in request.data))
        loss = sum(output.loss for output in outputs)
        return ForwardBackwardResult(
            logprobs=tuple(output.logprobs for output in outputs),
            metrics=_reduced(outputs) | {"loss:sum": loss, "tokens:sum": tokens},
        )


def evaluate(loss: DatumLoss, logprobs: np.ndarray, datum: Datum, index: int) -> DatumLossValue:
    """Evaluate a loss of the host; RequestError, naming the datum, where it fails or its value cannot be used."""
    given = {"target_tokens": datum.targets.astype(np.int64), **datum.inputs}
    inputs = {name: given[name].reshape(()) if rank == 0 else given[name] for name, rank in loss.inputs.items()}
    where = f"loss {loss.name!r} of data[{index}]"
    try:
        value = loss.evaluate(logprobs, inputs)
    except Exception as error:
        raise RequestError(f"{where} failed: {error}") from error
    if value.gradient.shape != logprobs.shape:
        raise RequestError(f"{where} has a gradient of shape {value.gradient.shape}: expected {logprobs.shape}")
    if not (math.isfinite(value.loss) and np.isfinite(value.gradient).all()):
        raise RequestError(f"{where} is {value.loss}: value and gradient must be finite")
    return value


def total_weight(data: Sequence[Datum]) -> float:
    """What a summed loss is shown relative to: the weights' absolute sum, tokens where a datum has none."""
    return float(sum(np.abs(d.inputs["weights"]).sum() if "weights" in d.inputs else len(d.tokens) for d in data))


def _find(losses: Losses, name: str) -> Loss | DatumLoss:
    loss = losses.get(name)
    if loss is None:
        raise RequestError(f"loss_fn {name!r} was removed before this request could run")
    return loss


def _logprobs(output: PassOutput, placement: Placement) -> np.ndarray:
    """A datum's logprobs in the shape of its targets."""
    return placement.cells(output.logprobs).reshape(placement.item.datum.targets.shape).copy()


def _reduced(outputs: Sequence[DatumOutput]) -> dict[str, float]:
    """Metrics of all datums: sums, and means by the counts. What is not finite, or counted nothing, is left out.

    A client that sent its data in chunks weighs their means by datums. That is right for what counts datums, and
    nearly so for means over tokens; ``action_tokens:sum`` tells their number.
    """
    totals: Counter[str] = Counter()
    for output in outputs:
        totals.update(output.metrics)
    count = sum(output.count for output in outputs) or math.nan
    reduced = {name: total / count if name.endswith(":mean") else total for name, total in totals.items()}
    return {name: value for name, value in reduced.items() if math.isfinite(value)}


def _sum(array: np.ndarray) -> float:
    return float(array.sum(dtype=np.float64))


def _request(ticket: Ticket) -> ForwardBackward:
    assert isinstance(ticket.request, ForwardBackward)
    return ticket.request
