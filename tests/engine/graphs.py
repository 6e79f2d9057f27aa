"""Losses as the SDK traces and encodes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss

from txlab.engine.loss_graph import GraphLoss, GraphNode, build_program


def trace(function: Callable, ranks: Mapping[str, int]) -> tuple[list[GraphNode], Callable]:
    """The graph of a loss as the server gets it, and as torch runs it on the client."""
    handle = trace_loss(function, ranks, "session")
    nodes = [GraphNode(**node.model_dump()) for node in encode_graph(handle).nodes]
    return nodes, handle.graph


def rebuild(function: Callable, ranks: Mapping[str, int]) -> tuple[GraphLoss, Callable]:
    """A loss here, untried and so for certain lengths only if need be, and the same loss in torch."""
    nodes, traced = trace(function, ranks)
    inputs = {name: rank for name, rank in ranks.items() if name != "logprobs"}
    return GraphLoss("session:loss:0", ranks["logprobs"], inputs, build_program(nodes, tuple(ranks))), traced
