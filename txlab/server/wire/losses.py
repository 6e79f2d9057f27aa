"""Losses that clients upload as traced graphs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from txlab.server.wire.base import SESSION, WireModel, example


class LossInput(WireModel):
    """An argument of the loss."""

    name: Annotated[str, Field(description="logprobs, or the key of loss_fn_inputs that is read.")]
    rank: Annotated[int, Field(description="0 for a number, 1 for [T], 2 for [T, K].")]


class LossNode(WireModel):
    """One node of the graph, as torch.fx records it."""

    op: Annotated[str, Field(description="placeholder, call_function, call_method or output.")]
    name: Annotated[str, Field(description="Unique in the graph: later nodes refer to it.")]
    target: Annotated[str, Field(description="An input, a function such as torch.exp, a method of Tensor, or output.")]
    args: Annotated[
        list[Any],
        Field(
            description="JSON values, or objects of one key: ref (to a node), tuple, dict, slice, ellipsis, float "
            "(inf, -inf, nan), dtype, device, layout, memory_format."
        ),
    ] = []
    kwargs: Annotated[dict[str, Any], Field(description="Arguments by name, encoded as args are.")] = {}


class LossGraph(WireModel):
    """The traced loss of one datum, as plain data."""

    format: Annotated[Literal[1], Field(description="Version of this form.")] = 1
    nodes: Annotated[list[LossNode], Field(description="In the order of execution; the last one is the output.")]


class CreateCustomLoss(WireModel):
    """A loss of its session's own."""

    model_config = example(
        session_id=SESSION,
        custom_loss_seq_id=0,
        name="negative_log_likelihood",
        inputs=[{"name": "logprobs", "rank": 1}],
        graph={
            "format": 1,
            "nodes": [
                {"op": "placeholder", "name": "logprobs", "target": "logprobs"},
                {"op": "call_method", "name": "sum_1", "target": "sum", "args": [{"ref": "logprobs"}]},
                {"op": "call_function", "name": "neg", "target": "operator.neg", "args": [{"ref": "sum_1"}]},
                {
                    "op": "output",
                    "name": "output",
                    "target": "output",
                    "args": [{"tuple": [{"ref": "neg"}, {"dict": {}}]}],
                },
            ],
        },
    )

    session_id: Annotated[str, Field(description="The session that may use it, and that it ends with.")]
    custom_loss_seq_id: Annotated[int, Field(ge=0, description="Its number in the session: a retry has the same one.")]
    name: Annotated[str, Field(description="What messages call it.")]
    inputs: Annotated[list[LossInput], Field(description="The placeholders of the graph in order, logprobs first.")]
    graph: LossGraph
