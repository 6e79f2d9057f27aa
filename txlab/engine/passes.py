"""A run of forward and forward_backward requests through the device, one micro-batch at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from txlab.engine.losses import LOSSES
from txlab.engine.packing import Item, TrainBatch, bucket, pack
from txlab.engine.requests import Datum, ForwardBackward, ForwardBackwardResult
from txlab.engine.scheduler import Ticket
from txlab.engine.trainer import PassOutput, Trainer, accumulate
from txlab.lora.adapter import Adapter, Weights
from txlab.lora.bank import AdapterBank
from txlab.lora.linear import combine, entry_gradient


class PassRun:
    """Passes of one group (same loss, all backward or none) that share device batches.

    Nothing is changed until ``commit``: a run that fails half-way leaves every adapter's gradient as it was.
    """

    def __init__(self, tickets: Sequence[Ticket], bank: AdapterBank, trainer: Trainer, budget: int):
        self.tickets = tuple(tickets)
        self._requests = [_request(ticket) for ticket in tickets]
        self._trainer = trainer
        self._models = list(dict.fromkeys(request.model_id for request in self._requests))
        self._adapters: list[Adapter] = [bank[model_id] for model_id in self._models]
        self._set = combine(self._adapters, bucket(len(self._adapters)))
        self._backward, self._loss = tickets[0].group
        self._batches: Iterator[TrainBatch] = pack(self._items(), LOSSES[self._loss], budget)
        self._outputs: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._gradients: list[Weights | None] = [None] * len(self._models)
        self._started = time.monotonic()

    def step(self) -> bool:
        """Run the next micro-batch. False where none was left."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        assert self._set is not None, "a pass has an adapter"
        if self._backward:
            output, gradient = self._trainer.forward_backward(self._set, batch, self._loss)
            self._collect(gradient, batch)
        else:
            output = self._trainer.forward(self._set, batch, self._loss)
        self._keep(output, batch)
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
            Item(owner, index, self._models.index(request.model_id), datum, request.loss_config)
            for owner, request in enumerate(self._requests)
            for index, datum in enumerate(request.data)
        ]

    def _collect(self, gradient: Weights, batch: TrainBatch) -> None:
        assert self._set is not None
        for entry in {placement.item.adapter for placement in batch.placements}:
            own = entry_gradient(gradient, self._adapters[entry], entry, self._set.stacked)
            self._gradients[entry] = accumulate(self._gradients[entry], own)

    def _keep(self, output: PassOutput, batch: TrainBatch) -> None:
        for placement in batch.placements:
            item, span = placement.item, placement.span
            self._outputs[item.owner, item.index] = (output.logprobs[span].copy(), output.loss[span])

    def _result(self, owner: int, request: ForwardBackward) -> ForwardBackwardResult:
        outputs = [self._outputs[owner, index] for index in range(len(request.data))]
        return ForwardBackwardResult(
            logprobs=tuple(logprobs for logprobs, _ in outputs),
            metrics={
                "loss:sum": float(sum(loss.sum(dtype=np.float64) for _, loss in outputs)),
                "tokens:sum": float(sum(len(datum.tokens) for datum in request.data)),
            },
        )


def total_weight(data: Sequence[Datum]) -> float:
    """What a summed loss is shown relative to: the weights' absolute sum, tokens where a datum has none."""
    return float(sum(np.abs(d.inputs["weights"]).sum() if "weights" in d.inputs else len(d.tokens) for d in data))


def _request(ticket: Ticket) -> ForwardBackward:
    assert isinstance(ticket.request, ForwardBackward)
    return ticket.request
