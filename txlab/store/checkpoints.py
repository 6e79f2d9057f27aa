"""Checkpoints on disk: one folder each, written so that a crash leaves either the old state or the new one.

``<root>/checkpoints/<model id>/<kind>/<name>/`` holds the arrays as safetensors, and ``checkpoint.json``, which names
that file. The JSON is moved into place last, by one atomic rename: a folder without it is no checkpoint, and
overwriting a checkpoint replaces it in one step.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from txlab.lora.state import AdapterState, LoraConfig

Kind = Literal["weights", "sampler_weights"]

SCHEME = "tinker://"
INDEX = "checkpoint.json"
FORMAT = 1
MIN_TTL = 3600  # seconds
MAX_TTL = 10 * 365 * 24 * 3600
SAFE_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._=-]{0,126}[A-Za-z0-9_=-])?")


class CheckpointError(Exception):
    """What was asked of a checkpoint cannot be done; the message names the way out."""


class CheckpointNotFoundError(CheckpointError):
    """There is no such checkpoint, or its time is over."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a checkpoint is found: ``tinker://{model_id}/{kind}/{name}``. A bad name raises CheckpointError."""

    model_id: str
    kind: Kind
    name: str

    def __post_init__(self) -> None:
        if not SAFE_NAME.fullmatch(self.name):
            raise CheckpointError(
                f"{self.name!r} is no checkpoint name: use up to 128 letters, digits and any of '._=-', "
                "neither beginning nor ending with a dot"
            )

    @property
    def path(self) -> str:
        """The address as a ``tinker://`` path."""
        return f"{SCHEME}{self.model_id}/{self.kind}/{self.name}"

    @classmethod
    def parse(cls, path: str) -> Address:
        """Read a ``tinker://`` path; CheckpointError where it is none."""
        parts = path.removeprefix(SCHEME).split("/")
        if not path.startswith(SCHEME) or len(parts) != 3 or not parts[0] or parts[1] not in get_args(Kind):
            kinds = " or ".join(get_args(Kind))
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
    user_metadata: Mapping[str, Any]
    size_bytes: int

    @property
    def path(self) -> str:
        """The ``tinker://`` path."""
        return self.address.path


class Checkpoints:
    """All checkpoints under a folder. Methods block on the disk and may be called from any thread."""

    def __init__(self, root: Path):
        self._root = root / "checkpoints"
        self._lock = threading.Lock()  # an overwrite removes arrays that a reader may have just looked up

    def write(
        self,
        address: Address,
        state: AdapterState,
        *,
        base_model: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, Any] | None = None,
    ) -> CheckpointInfo:
        """Store ``state``; moments are kept for kind ``weights`` only.

        Raises CheckpointError where the name is taken and ``overwrite`` is off, or ``ttl_seconds`` is out of range.
        """
        created = datetime.now(UTC)
        expires = _expiry(created, ttl_seconds)
        tensors = _flatten(state, optimizer=address.kind == "weights")
        folder = self._folder(address)
        arrays = folder / f"adapter-{secrets.token_hex(8)}.safetensors"
        with self._lock, _removed_on_error(arrays):
            if not overwrite:
                self._refuse_taken(address)
            _make_folder(folder)
            save_file(tensors, arrays)
            _sync(arrays)
            info = CheckpointInfo(
                address=address,
                base_model=base_model,
                lora=state.lora,
                step=state.step,
                has_optimizer=any(name.startswith("first_moment/") for name in tensors),
                created=created,
                expires=expires,
                user_metadata=dict(user_metadata or {}),
                size_bytes=arrays.stat().st_size,
            )
            _replace_json(folder / INDEX, _to_json(info, arrays.name))
            _sweep(folder, keep=arrays.name)
        return info

    def info(self, path: str) -> CheckpointInfo:
        """Describe the checkpoint at a ``tinker://`` path; CheckpointNotFoundError where there is none."""
        return self._lookup(Address.parse(path))[0]

    def read(self, path: str, *, base_model: str, optimizer: bool) -> tuple[AdapterState, CheckpointInfo]:
        """Load a checkpoint that was taken of ``base_model``.

        Without ``optimizer`` the moments are left out and the step count is 0: a fresh optimizer on these weights.
        """
        address = Address.parse(path)
        with self._lock:
            info, arrays = self._lookup(address)
            _check_loadable(info, base_model, optimizer)
            groups = _read_arrays(arrays, ("weights", "first_moment", "second_moment") if optimizer else ("weights",))
        state = AdapterState(
            lora=info.lora,
            weights=groups["weights"],
            step=info.step if optimizer else 0,
            first_moment=groups.get("first_moment") or None,
            second_moment=groups.get("second_moment") or None,
        )
        return state, info

    def _folder(self, address: Address) -> Path:
        return self._root / quote(address.model_id, safe="") / address.kind / address.name

    def _lookup(self, address: Address) -> tuple[CheckpointInfo, Path]:
        """Index and array file of a checkpoint that exists and has not expired."""
        folder = self._folder(address)
        try:
            record = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"checkpoint {address.path!r} does not exist on this server") from None
        info = _from_json(address, record)
        if info.expires is not None and info.expires <= datetime.now(UTC):
            raise CheckpointNotFoundError(f"checkpoint {address.path!r} expired at {info.expires:%Y-%m-%d %H:%M} UTC")
        return info, folder / record["arrays"]

    def _refuse_taken(self, address: Address) -> None:
        try:
            self._lookup(address)
        except CheckpointNotFoundError:
            return
        raise CheckpointError(f"checkpoint {address.path!r} exists: choose another name, or save with overwrite=True")


def _expiry(created: datetime, ttl_seconds: int | None) -> datetime | None:
    if ttl_seconds is None:
        return None
    if not MIN_TTL <= ttl_seconds <= MAX_TTL:
        raise CheckpointError(f"ttl_seconds is {ttl_seconds}: expected {MIN_TTL} (1 hour) … {MAX_TTL} (10 years)")
    return created + timedelta(seconds=ttl_seconds)


def _check_loadable(info: CheckpointInfo, base_model: str, optimizer: bool) -> None:
    if info.base_model != base_model:
        raise CheckpointError(
            f"checkpoint {info.path!r} was trained on {info.base_model!r}, this server serves {base_model!r}: "
            "serve that model to load it"
        )
    if optimizer and info.address.kind != "weights":
        raise CheckpointError(
            f"checkpoint {info.path!r} holds no optimizer state: load it without, or a checkpoint made by save_state"
        )


# ------------------------------------------------------------------------------- arrays and index


def _flatten(state: AdapterState, optimizer: bool) -> dict[str, np.ndarray]:
    """Name the arrays ``<group>/<name>`` for one safetensors file."""
    groups = {"weights": state.weights}
    if optimizer and state.first_moment is not None and state.second_moment is not None:
        groups |= {"first_moment": state.first_moment, "second_moment": state.second_moment}
    return {
        f"{group}/{name}": np.ascontiguousarray(array)
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }


def _read_arrays(file: Path, groups: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of the named groups, without reading the others."""
    found: dict[str, dict[str, np.ndarray]] = {group: {} for group in groups}
    with safe_open(file, framework="numpy") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a mapping
            group, _, name = key.partition("/")
            if group in found:
                found[group][name] = tensors.get_tensor(key)
    return found


def _to_json(info: CheckpointInfo, arrays: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "arrays": arrays,
        "path": info.path,
        "base_model": info.base_model,
        "lora": asdict(info.lora),
        "step": info.step,
        "has_optimizer": info.has_optimizer,
        "created": info.created.isoformat(),
        "expires": info.expires and info.expires.isoformat(),
        "user_metadata": info.user_metadata,
        "size_bytes": info.size_bytes,
    }


def _from_json(address: Address, record: Mapping[str, Any]) -> CheckpointInfo:
    if record["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {address.path!r} has format {record['format']}; this version reads {FORMAT}")
    return CheckpointInfo(
        address=address,
        base_model=record["base_model"],
        lora=LoraConfig(**record["lora"]),
        step=record["step"],
        has_optimizer=record["has_optimizer"],
        created=datetime.fromisoformat(record["created"]),
        expires=record["expires"] and datetime.fromisoformat(record["expires"]),
        user_metadata=record["user_metadata"],
        size_bytes=record["size_bytes"],
    )


# ------------------------------------------------------------------------------------------- disk


def _replace_json(file: Path, record: Mapping[str, Any]) -> None:
    """Put ``record`` in the place of ``file`` in one step that survives a crash."""
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(record, indent=1), encoding="utf-8")
    _sync(draft)
    os.replace(draft, file)
    _sync(file.parent)


def _make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, each entered in its parent's directory for good."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        _sync(created.parent)


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk; folders only where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path, keep: str) -> None:
    """Remove arrays that no index names: of the version before, or of a write that was cut off."""
    for file in folder.glob("adapter-*.safetensors"):
        if file.name != keep:
            file.unlink(missing_ok=True)


@contextmanager
def _removed_on_error(file: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.unlink(missing_ok=True)
        raise
