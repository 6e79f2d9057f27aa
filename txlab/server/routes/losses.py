"""Losses that clients bring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from txlab.engine.requests import RequestError
from txlab.server.futures import Reply, json_reply
from txlab.server.state import Server
from txlab.server.wire.futures import UntypedFuture
from txlab.server.wire.losses import CreateCustomLoss

if TYPE_CHECKING:
    from txlab.engine.loss_graph import GraphLoss

router = APIRouter(tags=["losses"])


@router.post("/create_custom_loss", summary="Upload a loss traced with torch.fx")
async def create_custom_loss(body: CreateCustomLoss, server: Server) -> UntypedFuture:
    """The future's result is `{loss_id}`, or why the graph is refused.

    `forward_backward` of the same session runs it with `loss_fn: custom` and `loss_fn_config: {loss_id}`.
    """
    session = server.sessions.get(body.session_id)
    loss_id = session.loss_id(body.custom_loss_seq_id)

    async def create() -> Reply:
        loss = await server.in_worker(_compile, loss_id, body)
        server.sessions.get(body.session_id)  # which may have ended meanwhile, and would not let go of the loss
        session.losses.add(loss_id)
        server.engine.losses.add(loss)
        return json_reply({"loss_id": loss_id, "type": "create_custom_loss"})

    return server.start("create_custom_loss", loss_id, create)


def _compile(loss_id: str, body: CreateCustomLoss) -> GraphLoss:
    from txlab.engine.loss_graph import GraphNode, compile_graph  # brings JAX in

    inputs = {loss_input.name: loss_input.rank for loss_input in body.inputs}
    nodes = [GraphNode(node.op, node.name, node.target, node.args, node.kwargs) for node in body.graph.nodes]
    try:
        return compile_graph(loss_id, inputs, nodes)
    except RequestError as error:
        raise RequestError(f"custom loss {body.name!r}: {error}") from error
