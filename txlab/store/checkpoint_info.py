"""What a checkpoint is called and what is known of it, without its arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args
from urllib.parse import quote

from txlab.lora.state import LoraConfig

Kind = Literal["weights", "sampler_weights", "external_weights"]

SCHEME = "tinker://"
SAFE_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._=-]{0,126}[A-Za-z0-9_=-])?")
MAX_MODEL_ID = 200  # characters as a folder's name


class CheckpointError(Exception):
    """What was asked of a checkpoint cannot be done; the message names the way out."""


class CheckpointNotFoundError(CheckpointError):
    """There is no such checkpoint, or its time is over."""


class CheckpointTakenError(CheckpointError):
    """There is a checkpoint of that name already."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a checkpoint is found: ``tinker://{model_id}/{kind}/{name}``. A bad part raises CheckpointError."""

    model_id: str
    kind: Kind
    name: str

    def __post_init__(self) -> None:
        if not SAFE_NAME.fullmatch(self.name):
            raise CheckpointError(
                f"{self.name!r} is no checkpoint name: use up to 128 letters, digits and any of '._=-', "
                "neither beginning nor ending with a dot"
            )
        if not self.model_id.strip(".") or len(self.folder_name) > MAX_MODEL_ID:
            raise CheckpointError(f"{self.model_id[:40]!r} is no model id: expected the one that a client was given")

    @property
    def checkpoint_id(self) -> str:
        """What the API calls it within its run: ``{kind}/{name}``."""
        return f"{self.kind}/{self.name}"

    @property
    def path(self) -> str:
        """The address as a ``tinker://`` path."""
        return f"{SCHEME}{self.model_id}/{self.checkpoint_id}"

    @property
    def folder_name(self) -> str:
        """The model id as a folder's name on every file system."""
        return quote(self.model_id, safe="")

    @classmethod
    def parse(cls, path: str) -> Address:
        """Read a ``tinker://`` path; CheckpointError where it is none."""
        parts = path.removeprefix(SCHEME).split("/")
        if not path.startswith(SCHEME) or len(parts) != 3 or not parts[0] or parts[1] not in get_args(Kind):
            kinds = "|".join(get_args(Kind))
            raise CheckpointError(f"{path!r} is no checkpoint path: expected {SCHEME}<model id>/<{kinds}>/<name>")
        return cls(parts[0], parts[1], parts[2])  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What is known of a checkpoint without reading its arrays. Times are in UTC."""

    address: Address
    base_model: str
    lora: LoraConfig
    step: int
    has_optimizer: bool
    created: datetime
    expires: datetime | None
    user_metadata: Mapping[str, Any] = field(default_factory=dict)
    size_bytes: int = 0
    public: bool = False
    copied_from: str | None = None  # the path of what it is a copy of

    @property
    def path(self) -> str:
        """The ``tinker://`` path."""
        return self.address.path

    def to_record(self) -> dict[str, Any]:
        """Everything but the address, as JSON has it."""
        return {name: value for name, value in asdict(self).items() if name != "address"} | {
            "created": self.created.isoformat(),
            "expires": self.expires and self.expires.isoformat(),
        }

    @classmethod
    def from_record(cls, address: Address, record: Mapping[str, Any]) -> CheckpointInfo:
        """Read what ``to_record`` made; KeyError, TypeError or ValueError where it is something else."""
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        return cls(
            **known
            | {
                "address": address,
                "lora": LoraConfig(**record["lora"]),
                "created": datetime.fromisoformat(record["created"]),
                "expires": record["expires"] and datetime.fromisoformat(record["expires"]),
            }
        )
