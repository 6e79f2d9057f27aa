"""Preparation of a lab: everything that can be had and checked before the lab that it replaces must go."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from txlab.config import KEY_VARIABLE, ServerSettings, Settings, StoreSettings
from txlab.folders import why_not_writable
from txlab.notebook.errors import TxlabError
from txlab.notebook.forks import in_forked_child, let_go
from txlab.notebook.imports import import_everything
from txlab.notebook.interrupts import Interrupts
from txlab.notebook.stopped import bind_or_ask, sign_at

if TYPE_CHECKING:
    from txlab.models.base import BaseModel, OpenedModel
    from txlab.store.store import Store


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A running lab, as far as the one that replaces it takes over from it."""

    host: str
    listener: socket.socket
    api_key: str = field(repr=False)
    memory_bytes: int  # that it gives back


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a lab needs but its weights."""

    listener: socket.socket
    api_key: str = field(repr=False)
    store: Store
    opened: OpenedModel


def prepare(settings: Settings, stack: ExitStack, old: Predecessor | None, interrupts: Interrupts) -> Prepared:
    """Find and check what ``settings`` name. ``stack`` closes it again.

    Where a lab is replaced, its port and its key are kept unless others are asked for: so its clients see that their
    sessions ended. Raises TxlabError.
    """
    former_key = _former_key(settings.server, old)
    listener = stack.enter_context(_listening(settings.server, old))  # a taken port is told before the long wait
    import_everything()
    _find_device()
    interrupts.check()
    interrupts.notice = lambda: "Interrupted: undoing what was started."
    api_key = make_api_key(settings.server.api_key, former_key)
    _check_flags(settings.server)
    store = _open_store(settings.store)
    stack.callback(store.close)
    opened = _open_model(settings, interrupts)
    if old is not None:
        _check_memory(opened, old.memory_bytes)
    return Prepared(listener, api_key, store, opened)


def make_api_key(wanted: str | None, former: str | None = None) -> str:
    """``wanted``, else ``$TXLAB_API_KEY``, else the ``former`` key of the same address, else a random one.

    Raises TxlabError for a key that the SDK would refuse to send.
    """
    from txlab.server.auth import check_api_key, new_api_key

    key = wanted if wanted is not None else os.environ.get(KEY_VARIABLE) or former
    try:
        return check_api_key(key) if key is not None else new_api_key()
    except ValueError as error:
        raise TxlabError(str(error)) from None


def load_weights(opened: OpenedModel) -> BaseModel:
    """The opened model with its weights. Raises TxlabError."""
    from txlab.models.base import load_opened

    with _model_errors():
        return load_opened(opened)


def load_model(settings: Settings) -> BaseModel:
    """The base model that ``settings`` name. Raises TxlabError where it cannot be had."""
    from txlab.models.base import load_base

    with _model_errors():
        return load_base(settings.model)


def _find_device() -> None:
    from txlab.models.mesh import make_mesh

    with _model_errors():
        make_mesh()


def _former_key(server: ServerSettings, old: Predecessor | None) -> str | None:
    """The key of the lab whose clients should find this one: of the running one, or of one that was stopped before."""
    former = old or sign_at(server.host, server.port)
    return None if former is None else former.api_key


def _check_flags(server: ServerSettings) -> None:
    from txlab.server.wire.service import check_flags

    try:
        check_flags(server.flags)
    except ValueError as error:
        raise TxlabError(f"settings.server.flags: {error}") from None


def _open_store(settings: StoreSettings) -> Store:
    from sqlalchemy.exc import SQLAlchemyError

    from txlab.store.store import Store

    problem = why_not_writable(settings.root)
    if problem is None:
        try:
            return Store(settings.root)
        except (OSError, SQLAlchemyError) as error:
            problem = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
    raise TxlabError(
        f"Checkpoints cannot be kept in {settings.root}: {problem}. "
        "Choose another folder (root=..., --root, or TXLAB_HOME)."
    )


def _open_model(settings: Settings, interrupts: Interrupts) -> OpenedModel:
    from txlab.models.base import open_model
    from txlab.models.sources import resolve
    from txlab.models.weights import check_names

    with _model_errors():
        with interrupts.allowed():  # a download takes minutes
            resolve(settings.model.name, settings.model)
        opened = open_model(settings.model)
        check_names(opened.config, opened.tensors)
    return opened


def _check_memory(opened: OpenedModel, freed: int) -> None:
    """Refuse weights that will not fit when ``freed`` bytes are free again."""
    needed, available = _parameter_bytes(opened), available_bytes() + freed
    if needed > available:
        raise TxlabError(
            f"{opened.settings.name} needs {needed / 1e9:.1f} GB in {opened.settings.dtype}, and there will be "
            f"{available / 1e9:.1f} GB when the running lab is gone. It goes on. Choose a smaller model, or a smaller "
            f'dtype: settings=txlab.Settings(model=ModelSettings(dtype="bfloat16")).'
        )


def _parameter_bytes(opened: OpenedModel) -> int:
    """Memory of the weights while they are loaded: all of them, and the largest once more as it is read."""
    import jax.numpy as jnp

    from txlab.models.decoder import parameter_shapes

    try:
        size = jnp.dtype(opened.settings.dtype).itemsize
    except TypeError:
        raise TxlabError(f"There is no dtype {opened.settings.dtype!r}: choose float32 or bfloat16.") from None
    shapes, layers = parameter_shapes(opened.config), opened.config.num_layers
    total = sum(prod(shape) * (layers if name.startswith("layers.") else 1) for name, shape in shapes.items())
    return size * (total + max(map(prod, shapes.values())))


def available_bytes() -> int:
    """Memory that is free on the device: what it reports, else the host's."""
    import jax
    import psutil

    report = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in report:
        return report["bytes_limit"] - report.get("bytes_in_use", 0)
    return psutil.virtual_memory().available


@contextmanager
def _listening(server: ServerSettings, old: Predecessor | None) -> Iterator[socket.socket]:
    """A listener of the server's address, shared with the lab that has it, or had it; forked children let go of it."""
    if old is not None and server.host == old.host and server.port in (0, old.listener.getsockname()[1]):
        # Its twin: so nobody takes the port in between, and who connects meanwhile waits instead of being refused.
        listener = old.listener.dup()
    elif (sign := sign_at(server.host, server.port)) is not None:
        listener = sign.share()
    else:
        listener = bind_or_ask(server.host, server.port)
    with listener, in_forked_child(lambda: let_go(listener.fileno())):
        yield listener


@contextmanager
def _model_errors() -> Iterator[None]:
    """Tell what is wrong with a model as a TxlabError."""
    from txlab.models.files import ModelFileError
    from txlab.models.mesh import NoDevice
    from txlab.models.sources import ModelNotFound

    try:
        yield
    except (ModelNotFound, ModelFileError, NoDevice) as error:
        raise TxlabError(str(error)) from None
