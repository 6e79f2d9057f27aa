"""What the lab does to adapters at its users' command, beside what their clients ask. On the server's event loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count

from txlab.engine.requests import CopyAdapter, ForkAdapter, RenameAdapter, UnloadAdapter
from txlab.lora.state import AdapterState
from txlab.server.sessions import Model
from txlab.server.state import ServerState
from txlab.store.checkpoint_info import Address, CheckpointInfo, CheckpointTakenError


async def rename(server: ServerState, model_id: str, name: str) -> None:
    """Call a model something else, as if it had been made under this name. Raises ApiError where it is gone."""
    server.sessions.model(model_id)
    await server.ask(RenameAdapter(model_id, name))
    model = server.sessions.model(model_id)
    renamed = replace(model, name=name, user_metadata={**(model.user_metadata or {}), "name": name})
    server.sessions.get(model.session_id).models[model_id] = renamed
    server.recorder.renamed(renamed)


async def unload(server: ServerState, model_id: str) -> None:
    """Free a model; snapshots taken of it live on. Raises ApiError where it is gone."""
    model = server.sessions.model(model_id)
    server.sessions.get(model.session_id).models.pop(model_id)
    await server.ask(UnloadAdapter(model_id))


async def save(server: ServerState, model_id: str, name: str | None, overwrite: bool = False) -> str:
    """Write a checkpoint of a model as it is now, optimizer state included; its path.

    Without a name it is ``lab-step-0012``, with a number behind where that is taken. Raises ApiError where the model
    is gone, CheckpointError where the name is taken and ``overwrite`` is off, or is none, or the disk refuses.
    """
    server.sessions.model(model_id)
    address = None if name is None else Address(model_id, "weights", name)  # a bad name is told before the copy
    state = await server.ask(CopyAdapter(model_id))
    assert isinstance(state, AdapterState)
    write = partial(server.checkpoints.write, state=state, base_model=server.engine.base.name)
    if address is None:
        info = await server.in_worker(_write_new, write, model_id, f"lab-step-{state.step:04d}")
    else:
        info = await server.in_worker(write, address, overwrite=overwrite)
    server.recorder.audit("checkpoint_written", tinker_path=info.path)
    return info.path


def _write_new(write: Callable[[Address], CheckpointInfo], model_id: str, stem: str) -> CheckpointInfo:
    """Write a checkpoint under the first name that is free; others may look for one at the same time."""
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    while True:
        with suppress(CheckpointTakenError):
            return write(Address(model_id, "weights", next(names)))


async def fork(server: ServerState, source_id: str, session_id: str, number: int, name: str, step: int | None) -> str:
    """Make model ``number`` of a session from another model, as it is now or was at a kept step; its id.

    Raises ApiError where one of both is gone, RequestError where the step is not kept.
    """
    source = server.sessions.model(source_id)
    session = server.sessions.get(session_id)
    about = {**(source.user_metadata or {}), "name": name, "forked_from": source_id}
    model = Model(session.model_id(number), session_id, name, source.lora, about)
    with session.holding(model):
        await server.ask(ForkAdapter(model.model_id, name, source_id, step), model.model_id)
    server.recorder.made(model)
    return model.model_id
