"""What the server is, and what clients ask before anything else."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

from fastapi import APIRouter, Body, Request

from txlab.server.sdk_version import check_version
from txlab.server.state import Server
from txlab.server.wire.service import AskConfig, Capabilities, ClientConfig, DynamicConfig, SupportedModel, config

router = APIRouter(tags=["service"])


@router.get("/healthz", summary="Tell that the server is up")
async def healthz() -> dict[str, str]:
    """The one route that needs no key."""
    return {"status": "ok"}


@router.post("/client/config", summary="Flags that a client reads once")
async def client_config(
    request: Request, server: Server, body: Annotated[AskConfig, Body(default_factory=AskConfig)]
) -> ClientConfig:
    """Without this route no client can be made: here an SDK that is too old learns it."""
    check_version(body.sdk_version)
    chosen = {"pjwt_auth_enabled": server.settings.jwt, "proto_compress_fwdbwd": _is_remote(request)}
    return config(ClientConfig, {**chosen, **server.settings.flags})


def _is_remote(request: Request) -> bool:
    """Whether the client is known to be on another machine."""
    try:
        return request.client is not None and not ip_address(request.client.host).is_loopback
    except ValueError:  # no address: a client within this process
        return False


@router.post("/client/dynamic_config", summary="Flags that a client reads again and again")
async def dynamic_config(server: Server) -> DynamicConfig:
    """The same as long as the server runs."""
    return config(DynamicConfig, server.settings.flags)


@router.post("/telemetry", summary="Accept a client's events and drop them")
async def telemetry(request: Request) -> dict[str, str]:
    """Every error of the SDK waits for this answer, so the body is not even parsed."""
    await request.body()
    return {"status": "accepted"}


@router.get("/get_server_capabilities", summary="List the base models that are served")
async def capabilities(server: Server) -> Capabilities:
    """One engine, one base model."""
    model = SupportedModel(model_name=server.engine.base.name, max_context_length=server.engine.limits.max_context)
    return Capabilities(supported_models=[model])
