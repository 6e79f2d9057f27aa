"""What the server is, and what clients ask before anything else."""

from __future__ import annotations

from fastapi import APIRouter, Request

from txlab.server.state import Server
from txlab.server.wire.service import Capabilities, ClientConfig, DynamicConfig, SupportedModel

router = APIRouter(tags=["service"])


@router.get("/healthz", summary="Tell that the server is up")
async def healthz() -> dict[str, str]:
    """The one route that needs no key."""
    return {"status": "ok"}


@router.post("/client/config", summary="Flags that a client reads once")
async def client_config() -> ClientConfig:
    """Without this route no client can be made."""
    return ClientConfig()


@router.post("/client/dynamic_config", summary="Flags that a client reads again and again")
async def dynamic_config() -> DynamicConfig:
    """Nothing changes here."""
    return DynamicConfig()


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
