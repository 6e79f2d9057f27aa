"""Checkpoints on disk: one folder each, written so that a crash leaves either the old state or the new one.

``<root>/checkpoints/<model id>/<kind>/<name>/`` holds the checkpoint's files, and ``checkpoint.json``, which names
them and says everything else that is known. The JSON is moved into place last, by one atomic rename: a folder without
it is no checkpoint, and overwriting a checkpoint or changing a fact of it replaces the JSON in one step. Files never
change, so that a reader needs no lock; who writes holds the lock of the root, against other processes too.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any
from urllib.parse import quote, unquote

import filelock
from safetensors import SafetensorError
from safetensors.numpy import save_file

from txlab.lora.peft import peft_files
from txlab.lora.state import AdapterState
from txlab.store.arrays import flatten, read_arrays
from txlab.store.checkpoint_info import (
    SCHEME,
    Address,
    CheckpointError,
    CheckpointInfo,
    CheckpointNotFoundError,
    CheckpointTakenError,
)
from txlab.store.disk import make_folder, remove_empty, remove_files, replace_json, sync

INDEX = "checkpoint.json"
ARRAYS = "adapter.safetensors"
LOCK = ".lock"
LOCK_SECONDS = 60.0
FORMAT = 2
MIN_TTL = 3600  # seconds
MAX_TTL = 10 * 365 * 24 * 3600


class Checkpoints:
    """All checkpoints under a folder. Methods block on the disk and may be called from any thread.

    Those that write raise CheckpointError where the disk is full or may not be written to.
    """

    def __init__(self, root: Path):
        self._root = root / "checkpoints"
        self._lock = filelock.FileLock(self._root / LOCK, timeout=LOCK_SECONDS)

    # ------------------------------------------------------------------------------------- write

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
        tensors = flatten(state, optimizer=address.kind == "weights")
        created = datetime.now(UTC)
        info = CheckpointInfo(
            address=address,
            base_model=base_model,
            lora=state.lora,
            step=state.step,
            has_optimizer=any(name.startswith("first_moment/") for name in tensors),
            created=created,
            expires=_expiry(created, ttl_seconds),
            user_metadata=dict(user_metadata or {}),
        )
        return self._commit(info, {ARRAYS: partial(save_file, tensors)}, overwrite)

    def write_external(
        self,
        address: Address,
        files: Mapping[str, bytes],
        state: AdapterState,
        *,
        base_model: str,
        ttl_seconds: int | None = None,
    ) -> CheckpointInfo:
        """Store ``files``, which other programs read, of the adapter ``state``. Raises as ``write`` does."""
        created = datetime.now(UTC)
        expires = _expiry(created, ttl_seconds)
        info = CheckpointInfo(address, base_model, state.lora, state.step, False, created, expires)
        return self._commit(info, {name: partial(_save_bytes, data) for name, data in files.items()})

    def copy(self, source: str, address: Address, ttl_seconds: int | None = None) -> CheckpointInfo:
        """Copy the checkpoint at a ``tinker://`` path to ``address``; made again it is the same copy.

        The copy shares nothing with its source, and is private. Raises as ``write`` and ``info`` do.
        """
        created = datetime.now(UTC)
        expires = _expiry(created, ttl_seconds)
        if existing := self._copy_of(source, address):
            return existing
        info, files = self._look_up(Address.parse(source))
        copied = replace(info, address=address, created=created, expires=expires, public=False, copied_from=source)
        try:
            return self._commit(copied, {name: partial(copyfile, file) for name, file in files.items()})
        except CheckpointError:
            if existing := self._copy_of(source, address):  # made by a retry, while this one waited for the lock
                return existing
            raise

    # ------------------------------------------------------------------------------------ change

    def publish(self, path: str, public: bool) -> None:
        """Say whether others may use the checkpoint; CheckpointNotFoundError where there is none."""
        self._change(path, public=public)

    def set_ttl(self, path: str, ttl_seconds: int | None) -> None:
        """Let it expire so long from now, or never; CheckpointError where that is out of range."""
        expires = _expiry(datetime.now(UTC), ttl_seconds)
        self._change(path, expires=expires and expires.isoformat())

    def delete(self, path: str) -> None:
        """Remove the checkpoint; who is reading it ends undisturbed."""
        address = Address.parse(path)
        with self._changing(f"{path!r} could not be deleted"):
            self._look_up(address)
            self._remove(address)

    def tidy(self) -> None:
        """Remove the files of expired checkpoints, and what killed processes left."""
        for address in list(self._addresses()):
            if not self._is_alive(address):
                with self._changing(f"what is left of {address.path!r} could not be removed"):
                    if not self._is_alive(address):  # under the lock nobody writes
                        self._remove(address)

    # -------------------------------------------------------------------------------------- read

    def info(self, path: str) -> CheckpointInfo:
        """Describe the checkpoint at a ``tinker://`` path; CheckpointNotFoundError where there is none."""
        return self._look_up(Address.parse(path))[0]

    def read(self, path: str, *, base_model: str | None, optimizer: bool) -> tuple[AdapterState, CheckpointInfo]:
        """Load a checkpoint that was taken of ``base_model``, None for any.

        Without ``optimizer`` the moments are left out and the step count is 0: a fresh optimizer on these weights.
        """
        info, files = self._look_up(Address.parse(path))
        _check_loadable(info, base_model, optimizer)
        wanted = ("weights", "first_moment", "second_moment") if optimizer else ("weights",)
        try:
            groups = read_arrays(files[ARRAYS], wanted)
        except FileNotFoundError:
            if self._look_up(info.address)[1] == files:
                raise CheckpointError(f"checkpoint {path!r} is damaged: {files[ARRAYS]} is missing") from None
            return self.read(path, base_model=base_model, optimizer=optimizer)  # it was overwritten meanwhile
        state = AdapterState(
            lora=info.lora,
            weights=groups["weights"],
            step=info.step if optimizer else 0,
            first_moment=groups.get("first_moment") or None,
            second_moment=groups.get("second_moment") or None,
        )
        return state, info

    def files(self, path: str) -> dict[str, Path]:
        """Where the checkpoint's files lie, by the names that others know them by."""
        return self._look_up(Address.parse(path))[1]

    def peft_files(self, path: str) -> dict[str, bytes]:
        """The checkpoint as PEFT reads it, file by file; an export as it was made."""
        address = Address.parse(path)
        if address.kind == "external_weights":
            try:
                return {name: file.read_bytes() for name, file in self.files(path).items()}
            except FileNotFoundError:
                raise CheckpointNotFoundError(f"checkpoint {path!r} was deleted while it was read") from None
        state, info = self.read(path, base_model=None, optimizer=False)
        return peft_files(state, info.base_model)

    def stamps(self, model_id: str | None = None) -> dict[Address, str]:
        """Find all checkpoints, or a model's, each with a stamp that changes whenever something of it does.

        Expired ones are among them until their files are removed.
        """
        found = {}
        for address in self._addresses(model_id):
            with suppress(OSError):
                found[address] = _stamp(self._folder(address) / INDEX)
        return found

    def _copy_of(self, source: str, address: Address) -> CheckpointInfo | None:
        with suppress(CheckpointNotFoundError):
            existing = self.info(address.path)
            return existing if existing.copied_from == source else None
        return None

    # ----------------------------------------------------------------------------------- folders

    def _folder(self, address: Address) -> Path:
        return self._root / address.folder_name / address.kind / address.name

    def _addresses(self, model_id: str | None = None) -> Iterator[Address]:
        """Addresses of all folders that are ours, whatever they hold."""
        for folder in self._root.glob("*/*/*" if model_id is None else f"{quote(model_id, safe='')}/*/*"):
            model, kind, name = folder.relative_to(self._root).parts
            with suppress(CheckpointError):
                address = Address.parse(f"{SCHEME}{unquote(model)}/{kind}/{name}")
                if self._folder(address) == folder:
                    yield address

    def _look_up(self, address: Address) -> tuple[CheckpointInfo, dict[str, Path]]:
        """Facts and files of a checkpoint that exists and has not expired."""
        record = self._record(address)
        folder = self._folder(address)
        try:
            info = CheckpointInfo.from_record(address, record)
            files = {name: folder / stored for name, stored in record["files"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(address, error) from None
        if info.expires is not None and info.expires <= datetime.now(UTC):
            raise CheckpointNotFoundError(f"checkpoint {address.path!r} expired at {info.expires:%Y-%m-%d %H:%M} UTC")
        return info, files

    def _record(self, address: Address) -> dict[str, Any]:
        """The contents of checkpoint.json."""
        try:
            record = json.loads((self._folder(address) / INDEX).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointNotFoundError(f"checkpoint {address.path!r} does not exist on this server") from None
        except (OSError, ValueError) as error:
            raise _damaged(address, error) from None
        match record:
            case {"format": 1, "arrays": arrays}:  # had one file, and a name for it
                return record | {"files": {ARRAYS: arrays}}
            case {"format": 2}:
                return record
        raise _damaged(address, f"this version of txlab reads formats 1 and {FORMAT}")

    def _is_alive(self, address: Address) -> bool:
        """Whether it is to be kept: a damaged one is, since a person may mend it."""
        try:
            self._look_up(address)
        except CheckpointNotFoundError:
            return False
        except CheckpointError:
            return True
        return True

    def _commit(
        self, info: CheckpointInfo, contents: Mapping[str, Callable[[Path], Any]], overwrite: bool = False
    ) -> CheckpointInfo:
        """Write the files by the functions given for each, then the JSON that makes them a checkpoint."""
        folder, token = self._folder(info.address), secrets.token_hex(8)
        stored = {name: f"{token}-{name}" for name in contents}
        with self._changing(f"{info.path!r} could not be written"):
            if not overwrite:
                self._refuse_taken(info.address)
            try:
                make_folder(folder)
                for name, save in contents.items():
                    save(folder / stored[name])
                    sync(folder / stored[name])
                info = replace(info, size_bytes=sum((folder / name).stat().st_size for name in stored.values()))
                replace_json(folder / INDEX, {"format": FORMAT, "path": info.path, "files": stored} | info.to_record())
            finally:
                self._sweep(info.address)
        return info

    def _change(self, path: str, **facts: Any) -> None:
        """Replace facts in checkpoint.json."""
        address = Address.parse(path)
        with self._changing(f"{path!r} could not be changed"):
            self._look_up(address)
            replace_json(self._folder(address) / INDEX, self._record(address) | {"format": FORMAT} | facts)

    def _remove(self, address: Address) -> None:
        """Take the JSON first: without it there is no checkpoint, whatever happens next."""
        folder = self._folder(address)
        (folder / INDEX).unlink(missing_ok=True)
        sync(folder)
        self._sweep(address)

    def _sweep(self, address: Address) -> None:
        """Remove files that the JSON does not name: of the version before, or of a write that was cut off."""
        named: Iterable[str] = ()
        with suppress(CheckpointNotFoundError):
            named = self._record(address)["files"].values()
        remove_files(self._folder(address), keep={INDEX, *named})
        remove_empty(self._folder(address), self._root)

    def _refuse_taken(self, address: Address) -> None:
        try:
            self._look_up(address)
        except CheckpointNotFoundError:
            return
        hint = ", or save with overwrite=True" if address.kind == "weights" else ", or delete it first"
        raise CheckpointTakenError(f"checkpoint {address.path!r} exists: choose another name{hint}")

    @contextmanager
    def _changing(self, failure: str) -> Iterator[None]:
        """Hold the lock of the root, and tell of a disk that fails as CheckpointError."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with self._lock:
                yield
        except filelock.Timeout:
            raise CheckpointError(
                f"checkpoint {failure}: another process has held {self._root / LOCK} for {LOCK_SECONDS:g} s"
            ) from None
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"checkpoint {failure} under {self._root}: {reason}") from error


def _expiry(start: datetime, ttl_seconds: int | None) -> datetime | None:
    if ttl_seconds is None:
        return None
    if not MIN_TTL <= ttl_seconds <= MAX_TTL:
        raise CheckpointError(f"ttl_seconds is {ttl_seconds}: expected {MIN_TTL} (1 hour) … {MAX_TTL} (10 years)")
    return start + timedelta(seconds=ttl_seconds)


def _check_loadable(info: CheckpointInfo, base_model: str | None, optimizer: bool) -> None:
    if info.address.kind == "external_weights":
        raise CheckpointError(
            f"checkpoint {info.path!r} is an export for other programs: load one made by save_state "
            "or save_weights_for_sampler"
        )
    if base_model is not None and info.base_model != base_model:
        raise CheckpointError(
            f"checkpoint {info.path!r} was trained on {info.base_model!r}, this server serves {base_model!r}: "
            "serve that model to load it"
        )
    if optimizer and info.address.kind != "weights":
        raise CheckpointError(
            f"checkpoint {info.path!r} holds no optimizer state: load it without, or a checkpoint made by save_state"
        )


def _damaged(address: Address, why: object) -> CheckpointError:
    return CheckpointError(f"checkpoint {address.path!r} cannot be read: its {INDEX}: {why}")


def _stamp(file: Path) -> str:
    """What changes when ``file`` is replaced: the time, the size, and which file it is."""
    status = file.stat()
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


def _save_bytes(data: bytes, file: Path) -> None:
    file.write_bytes(data)
