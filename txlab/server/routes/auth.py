"""Credentials: tokens made of the key, and the key described, for ``tinker auth``."""

from __future__ import annotations

from fastapi import APIRouter, Request

from txlab.server.auth import EMAIL, ORGANIZATION, credential
from txlab.server.errors import ApiError
from txlab.server.state import Server
from txlab.server.wire.auth import KeyDetails, KeyInfo, Organization, Token, User

router = APIRouter(tags=["auth"], prefix="/auth")


@router.post("/token", summary="Exchange the key for a token that expires")
async def exchange(request: Request, server: Server) -> Token:
    """A token is exchanged for itself: it gains no time, so that a leaked one ends when it says."""
    return Token(jwt=server.credentials.exchange(credential(request.scope)))


@router.get("/apikey/me", summary="Describe the key that was sent")
async def my_key(server: Server) -> KeyInfo:
    """Where ``tinker auth login`` learns whose key it stores."""
    details = KeyDetails(org_details=Organization(name=ORGANIZATION), user_details=User(email=EMAIL))
    note = "the one key of this server; it is good as long as the server runs with it"
    return KeyInfo(key_id=server.credentials.key_id, name="txlab", note=note, details=details)


@router.delete("/apikey/me", summary="Refuse to revoke the server's only key")
async def revoke_my_key() -> None:
    """A server has one key; it is gone with the server."""
    raise ApiError(400, "this is the server's only key, and stays good: start the server anew to get another one")
