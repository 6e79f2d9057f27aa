"""A run of forward and forward_backward requests through the device, one batch at a time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import jax
import numpy as np

from txlab.engine.events import PassCompleted
from txlab.engine.losses import FUSED, LOSSES, DatumLoss, DatumLossValue, Loss, Losses, Terms, metric_names
from txlab.engine.packing import HeadSlice, Item, Placement, Scored, TrainBatch, bucket, head_slices, pack
from txlab.engine.programs import SliceOutput
from txlab.engine.requests import Datum, ForwardBackward, ForwardBackwardResult, RequestError
from txlab.engine.scheduler import Ticket
from txlab.engine.streams import Streams
from txlab.engine.trainer import Activations, accumulate, loss_gradient
from txlab.lora.adapter import Adapter, Gradient
from txlab.lora.bank import AdapterBank

ROW_WIDTH = 16  # the narrowest row of a loss that looks across positions
CROSS_ENTROPY = LOSSES["cross_entropy"]
OWN_METRICS = ("loss:sum", "tokens:sum", "weights:sum")  # the loss and what it is a sum over; others are drawn by name


@dataclass(slots=True, eq=False)
class DatumOutput:
    """What a pass found out about one datum. ``metrics`` are sums over it, and ``count`` what means divide by."""

    logprobs: np.ndarray  # (N,) or (N, K) float32, as its targets
    loss: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    count: float = 0.0


class PassRun:
    """Passes of any adapters and losses, all backward or none, that share device batches.

    Nothing is changed until ``commit``: a run that fails half-way leaves every adapter's gradient as it was.
    """

    def __init__(self, tickets: Sequence[Ticket], bank: AdapterBank, streams: Streams, losses: Losses):
        self.tickets = tuple(tickets)
        self._requests = [_request(ticket) for ticket in tickets]
        self._streams = streams
        self._models = list(dict.fromkeys(request.model_id for request in self._requests))
        self._adapters: list[Adapter] = [bank[model_id] for model_id in self._models]
        self._backward = tickets[0].backward
        self._losses = [_find(losses, request.loss) for request in self._requests]
        self._batches: Iterator[TrainBatch] = pack(self._items(), streams.tokens, streams.count)
        self._outputs: dict[tuple[int, int], DatumOutput] = {}
        self._gradients: list[dict[int, Gradient]] = [{} for _ in range(streams.count)]  # by stream, by adapter
        self._started = time.monotonic()

    def step(self) -> list[TrainBatch]:
        """Run the next batches, as many as there are streams, and return them. Empty where none was left."""
        batches = list(islice(self._batches, self._streams.count))
        self._streams.run(self._run, batches, self._gradients)
        return batches

    def _run(self, batch: TrainBatch, gradients: dict[int, Gradient]) -> None:
        activations = self._streams.trainer.forward(batch, self._adapters, self._backward)
        scored = [
            Scored(p, loss, p.item.inputs(loss), self._backward)
            for p in batch.placements
            if isinstance(loss := p.item.loss, Loss) and loss in FUSED
        ]
        between = self._evaluate(activations, [p for p in batch.placements if p.item.loss not in FUSED])
        outputs = self._score(activations, scored + between)
        self._keep([s.placement for s in scored], outputs[: len(scored)])
        if self._backward:
            for adapter, gradient in self._streams.trainer.backward(activations):
                gradients[adapter] = accumulate(gradients.get(adapter), gradient)
            jax.block_until_ready(gradients)

    def commit(self) -> None:
        """Add the run's gradients to those that the adapters have accumulated."""
        for gradients in self._gradients:
            for number, gradient in gradients.items():
                adapter = self._adapters[number]
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
            Item(owner, index, self._models.index(request.model_id), datum, self._losses[owner], request.loss_config)
            for owner, request in enumerate(self._requests)
            for index, datum in enumerate(request.data)
        ]

    def _score(self, activations: Activations, scored: Sequence[Scored]) -> list[DatumOutput]:
        """What the head says of each."""
        parts = list(head_slices(scored, len(activations.batch.tokens)))
        outputs = [self._streams.trainer.score(activations, part) for part in parts]
        return collect(scored, parts, jax.device_get(outputs))

    def _evaluate(self, activations: Activations, placements: Sequence[Placement]) -> list[Scored]:
        """Losses that need whole sequences, from the logprobs; what carries their gradients to the head.

        d(-w * lp) / d lp = -w, so cross_entropy with the negative gradient as its weights does.
        """
        weightless = [Scored(p, CROSS_ENTROPY, {"weights": 0.0}, backward=False) for p in placements]
        outputs = self._score(activations, weightless)
        slopes: dict[Placement, np.ndarray] = {}
        by_loss = groupby(zip(placements, outputs, strict=True), key=lambda pair: pair[0].item.loss)
        for loss, members in by_loss:
            here, known = zip(*members, strict=True)
            values = _of_rows(loss, here, known) if isinstance(loss, Loss) else self._of_host(loss, here, known)
            slopes |= dict(zip(here, values, strict=True))
        self._keep(placements, outputs)
        if not self._backward:
            return []
        return [Scored(p, CROSS_ENTROPY, {"weights": -slopes[p]}, backward=True) for p in placements]

    def _of_host(
        self, loss: DatumLoss, placements: Sequence[Placement], outputs: Sequence[DatumOutput]
    ) -> list[np.ndarray]:
        """Evaluate a loss of the host; fills in ``outputs`` and returns the gradients."""
        values = []
        for placement, output in zip(placements, outputs, strict=True):
            value = evaluate(loss, output.logprobs, placement.item.datum, placement.item.index)
            output.loss, output.metrics, output.count = value.loss, value.metrics, 1.0
            values.append(value.gradient)
        return values

    def _keep(self, placements: Sequence[Placement], outputs: Sequence[DatumOutput]) -> None:
        for placement, output in zip(placements, outputs, strict=True):
            self._outputs[placement.item.owner, placement.item.index] = output

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


def collect(scored: Sequence[Scored], parts: Sequence[HeadSlice], outputs: Sequence[SliceOutput]) -> list[DatumOutput]:
    """Put together again what the head said of each, from the slices that its positions went to."""
    results = [DatumOutput(np.zeros(s.placement.item.datum.targets.shape, np.float32)) for s in scored]
    flat = [result.logprobs.reshape(len(result.logprobs), -1) for result in results]
    for part, output in zip(parts, outputs, strict=True):
        logprobs = output.logprobs.reshape(len(part.index), -1)
        for number in np.unique(part.scored[part.scored >= 0]):
            rows, one, result = part.scored == number, scored[number], results[number]
            places = part.index[rows] - one.placement.start
            flat[number][places] = logprobs[rows, : flat[number].shape[1]]
            metrics = {name: output.terms.metrics[name] for name in metric_names(one.loss)}
            _add_terms(result, Terms(output.terms.loss, metrics, output.terms.counts), rows)
    return results


def _of_rows(loss: Loss, placements: Sequence[Placement], outputs: Sequence[DatumOutput]) -> list[np.ndarray]:
    """Evaluate a loss that looks across positions, one datum a row; fills in ``outputs``, returns the gradients."""
    lengths = [len(placement.item) for placement in placements]
    shape = bucket(len(lengths)), bucket(max(lengths), ROW_WIDTH)
    real = np.arange(shape[1]) < np.array(lengths + [0] * (shape[0] - len(lengths)))[:, None]
    logprobs = np.zeros(shape, np.float32)
    inputs = {name: np.zeros(shape, np.float32) for name in loss.inputs}
    for row, (placement, output) in enumerate(zip(placements, outputs, strict=True)):
        logprobs[row, : lengths[row]] = output.logprobs.reshape(-1)
        for name, values in placement.item.inputs(loss).items():
            inputs[name][row, : lengths[row]] = np.asarray(values).reshape(-1)
    terms, gradient = loss_gradient(loss, logprobs, inputs, real)
    for row, output in enumerate(outputs):
        _add_terms(output, terms, (row, slice(0, lengths[row])))
    shapes = [placement.item.datum.targets.shape for placement in placements]
    return [gradient[row, :n].reshape(shape) for row, (n, shape) in enumerate(zip(lengths, shapes, strict=True))]


def _add_terms(output: DatumOutput, terms: Terms, where: Any) -> None:
    """Add the sums over ``where`` of arrays of terms."""
    output.loss += _sum(terms.loss[where])
    sums = {name: _sum(values[where]) for name, values in terms.metrics.items()}
    output.metrics = {name: output.metrics.get(name, 0.0) + value for name, value in sums.items()}
    output.count += 0.0 if terms.counts is None else _sum(terms.counts[where])


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


def pass_completed(ticket: Ticket, result: ForwardBackwardResult, seconds: float) -> PassCompleted:
    """The event of a finished pass."""
    request = _request(ticket)
    loss, tokens = result.metrics["loss:sum"], int(result.metrics["tokens:sum"])
    others = {name.partition(":")[0]: value for name, value in result.metrics.items() if name not in OWN_METRICS}
    return PassCompleted(request.model_id, loss, total_weight(request.data), tokens, seconds, request.backward, others)


def total_weight(data: Sequence[Datum]) -> float:
    """What a summed loss is shown relative to: the weights' absolute sum, tokens where a datum has none."""
    return float(sum(np.abs(d.inputs["weights"]).sum() if "weights" in d.inputs else len(d.tokens) for d in data))


def _find(losses: Losses, name: str) -> Loss | DatumLoss:
    loss = losses.get(name)
    if loss is None:
        raise RequestError(f"loss_fn {name!r} was removed before this request could run")
    return loss


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


def _sum(array: Any) -> float:
    return float(array.sum(dtype=np.float64))


def _request(ticket: Ticket) -> ForwardBackward:
    assert isinstance(ticket.request, ForwardBackward)
    return ticket.request
