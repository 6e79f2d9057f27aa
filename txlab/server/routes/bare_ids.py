"""Answers to those who call a checkpoint by its name alone, where its id has its kind in front."""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter, Request
from starlette.convertors import StringConvertor, register_url_convertor

from txlab.server.errors import ApiError
from txlab.server.routes.checkpoints import RUN
from txlab.server.state import Server
from txlab.store.checkpoint_info import Kind

KINDS = get_args(Kind)
ACTIONS = frozenset({"", "publish", "ttl", "external_weights_urls", "files", "archive", "archive.tar"})


class NoKind(StringConvertor):
    """A part of a path that is none of the kinds of checkpoints."""

    regex = f"(?!(?:{'|'.join(KINDS)})(?:/|$))[^/]+"


register_url_convertor("no_kind", NoKind())

router = APIRouter(include_in_schema=False)
METHODS = ["GET", "POST", "PUT", "DELETE"]


@router.api_route(RUN + "/{first:no_kind}", methods=METHODS)
@router.api_route(RUN + "/{first:no_kind}/{second}", methods=METHODS)
@router.api_route(RUN + "/{first:no_kind}/{second}/{third}", methods=METHODS)
async def explain_id(model_id: str, request: Request, server: Server) -> None:
    """Name the ids that were perhaps meant."""
    first, action = request.path_params["first"], request.path_params.get("second", "")
    if action not in ACTIONS:
        raise ApiError(422, f"{first!r} is no kind of checkpoint: expected one of {', '.join(KINDS)}")
    infos = await server.in_worker(server.checkpoint_index.of_run, model_id)
    known = {info.address.checkpoint_id for info in infos}
    ids = [repr(checkpoint_id) for kind in KINDS if (checkpoint_id := f"{kind}/{first}") in known]
    meant = f"here {' or '.join(ids)}" if ids else f"like 'weights/{first}'"
    raise ApiError(404, f"{first!r} is no checkpoint id: an id has the checkpoint's kind in front, {meant}")
