"""Credentials, and who holds them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from txlab.server.wire.base import WireModel


class Token(WireModel):
    """A token that stands for the API key until it expires."""

    jwt: Annotated[str, Field(description="A JSON Web Token, signed with HMAC-SHA256.")]


class Organization(WireModel):
    """Whom a key belongs to."""

    name: str


class User(WireModel):
    """Who uses a key."""

    email: str


class KeyDetails(WireModel):
    """Whom a key was made for."""

    org_details: Organization
    user_details: User


class KeyInfo(WireModel):
    """What ``tinker auth login`` keeps beside a key."""

    key_id: int
    name: str
    note: str
    details: KeyDetails
