"""Checkpoints and samplers made of a model's weights, and models made of checkpoints.

The engine hands over copies in host memory; worker threads bring them to the disk and back.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends

from txlab.engine.requests import (
    DropSnapshot,
    ExportAdapter,
    ImportAdapter,
    RequestError,
    SkipSeq,
    TakeSnapshot,
)
from txlab.engine.validation import validate
from txlab.lora.peft import peft_files
from txlab.lora.state import AdapterState
from txlab.server.errors import ApiError
from txlab.server.futures import Reply, json_reply
from txlab.server.refused import SequencedRoute
from txlab.server.routes.checkpoints import NOT_FOUND, sweep_expired
from txlab.server.routes.models import check_optimizer
from txlab.server.sessions import Model, Sampler
from txlab.server.state import Server, ServerState
from txlab.server.wire.futures import UntypedFuture
from txlab.server.wire.weights import (
    LoadWeights,
    SaveWeights,
    SaveWeightsExternal,
    SaveWeightsForSampler,
    WeightsInfo,
    WeightsPath,
)
from txlab.store.checkpoint_info import Address, CheckpointInfo, Kind
from txlab.store.checkpoints import Checkpoints
from txlab.store.encryption import encrypt_files
from txlab.store.records import Records

router = APIRouter(tags=["weights"], dependencies=[Depends(sweep_expired)], route_class=SequencedRoute)


@router.post("/save_weights", summary="Write a checkpoint to train on from")
async def save_weights(body: SaveWeights, server: Server) -> UntypedFuture:
    """Weights and optimizer state as they are when it is this request's turn."""
    server.sessions.model(body.model_id)

    async def save() -> Reply:
        return await _write(server, body, body.path, "weights", overwrite=body.overwrite)

    return server.start("training", (body.model_id, body.seq_id), save, model_id=body.model_id)


@router.post("/save_weights_for_sampler", summary="Write a checkpoint to sample from, or freeze the weights in memory")
async def save_weights_for_sampler(body: SaveWeightsForSampler, server: Server) -> UntypedFuture:
    """With a name: a checkpoint. Without: a sampler that lives as long as its session."""
    model = server.sessions.model(body.model_id)

    async def save() -> Reply:
        if body.path is None:
            return await _take_snapshot(server, model, body)
        return await _write(server, body, body.path, "sampler_weights")

    return server.start("training", (body.model_id, body.seq_id), save, model_id=body.model_id)


async def _write(
    server: ServerState, body: SaveWeights | SaveWeightsForSampler, name: str, kind: Kind, overwrite: bool = False
) -> Reply:
    """Copy the adapter when it is this request's turn, and bring the copy to the disk."""
    address, state = await _export(server, body, name, kind)
    info = await server.in_worker(
        server.checkpoints.write,
        address,
        state,
        base_model=server.engine.base.name,
        ttl_seconds=body.ttl_seconds,
        overwrite=overwrite,
        user_metadata=body.user_metadata,
    )
    return _written(server, info)


async def _export(
    server: ServerState, body: SaveWeights | SaveWeightsForSampler | SaveWeightsExternal, name: str, kind: Kind
) -> tuple[Address, AdapterState]:
    with server.turn(body.model_id, body.seq_id):
        address = Address(body.model_id, kind, name)
    state = await server.ask(ExportAdapter(body.model_id, body.seq_id, optimizer=kind == "weights"))
    assert isinstance(state, AdapterState)
    return address, state


def _written(server: ServerState, info: CheckpointInfo) -> Reply:
    server.recorder.audit("checkpoint_written", tinker_path=info.path)
    return json_reply({"path": info.path})


@router.post("/save_weights_external", summary="Write the adapter as other programs read it")
async def save_weights_external(body: SaveWeightsExternal, server: Server) -> UntypedFuture:
    """PEFT's files, which `peft.PeftModel.from_pretrained` loads; ask for links to them by external_weights_urls."""
    server.sessions.model(body.model_id)

    async def save() -> Reply:
        address, state = await _export(server, body, body.path, "external_weights")
        name = server.engine.base.name
        return _written(server, await server.in_worker(_write_external, server.checkpoints, address, state, name, body))

    return server.start("training", (body.model_id, body.seq_id), save, model_id=body.model_id)


def _write_external(
    checkpoints: Checkpoints, address: Address, state: AdapterState, base_model: str, body: SaveWeightsExternal
) -> CheckpointInfo:
    files = peft_files(state, base_model)
    if body.age_encryption_recipients:
        files = encrypt_files(files, body.age_encryption_recipients)
    return checkpoints.write_external(address, files, state, base_model=base_model, ttl_seconds=body.ttl_seconds)


async def _take_snapshot(server: ServerState, model: Model, body: SaveWeightsForSampler) -> Reply:
    with server.turn(body.model_id, body.seq_id):
        if body.sampling_session_seq_id is None:
            raise RequestError("expected path (a name) or sampling_session_seq_id")
        session = server.sessions.get(model.session_id)
        sampler_id = session.sampler_id(body.sampling_session_seq_id)
    if session.makes(sampler_id):  # the same save under another seq_id
        server.tell(SkipSeq(body.model_id, body.seq_id))

    async def make() -> Sampler:
        sampler = Sampler(sampler_id, session.session_id, snapshot_id=sampler_id)
        with session.holding(sampler):
            await server.ask(TakeSnapshot(body.model_id, body.seq_id, sampler_id))
        if body.kind == "inflight":
            for snapshot_id in session.publish(sampler, body.model_id):
                server.tell(DropSnapshot(snapshot_id))
        server.recorder.made(sampler, body.model_id)
        return sampler

    await session.make(sampler_id, make)
    return json_reply({"sampling_session_id": sampler_id, "type": "save_weights_for_sampler"})


@router.post("/load_weights", summary="Load a checkpoint into a new model, or as a model's next request")
async def load_weights(body: LoadWeights, server: Server) -> UntypedFuture:
    """Without ``optimizer`` the weights alone are taken, and the optimizer starts afresh."""
    if body.session_id is not None and body.model_seq_id is not None:
        check_optimizer(body.optimizer_config)
        server.check_base_model(body.base_model or server.engine.base.name)
        return _create_from_checkpoint(server, body, body.session_id, body.model_seq_id)
    if body.model_id is not None and body.seq_id is not None:
        return _load_into(server, body, body.model_id, body.seq_id)
    raise ApiError(422, "expected session_id and model_seq_id, or model_id and seq_id")


def _create_from_checkpoint(
    server: ServerState, body: LoadWeights, session_id: str, model_seq_id: int
) -> UntypedFuture:
    session = server.sessions.get(session_id)
    model_id = session.model_id(model_seq_id)

    async def create() -> Reply:
        state, info = await _read(server, body)
        proposed = await server.in_worker(_name_of_resumed, server.records, info.address)
        name = server.sessions.next_model_name(session, body.user_metadata, proposed)
        request = ImportAdapter(model_id, 0, state, name)
        validate(request, server.engine.limits)
        server.sessions.get(session_id)
        model = Model(model_id, session_id, name, state.lora, body.user_metadata)
        with session.holding(model):
            await server.ask(request)
        server.recorder.made(model)
        server.recorder.resumed(model_id, info, body.optimizer)
        return json_reply({"path": body.path, "model_id": model_id, "type": "load_weights"})

    return server.start("create_model", model_id, create, model_id=model_id)


def _load_into(server: ServerState, body: LoadWeights, model_id: str, seq_id: int) -> UntypedFuture:
    model = server.sessions.model(model_id)

    async def load() -> Reply:
        with server.turn(model_id, seq_id):
            state, _ = await _read(server, body)
            request = ImportAdapter(model_id, seq_id, state, model.name)
            validate(request, server.engine.limits)
        await server.ask(request)
        server.sessions.get(model.session_id).models[model_id] = Model(
            model_id, model.session_id, model.name, state.lora, model.user_metadata
        )
        return json_reply({"path": body.path, "model_id": model_id, "type": "load_weights"})

    return server.start("training", (model_id, seq_id), load, model_id=model_id)


def _name_of_resumed(records: Records, address: Address) -> str:
    """``pirate from step-40``: by its run and its checkpoint, so that people see where an adapter comes from."""
    run = records.run(address.model_id)
    if run is None:
        return address.name
    origin = records.origin(run.model_id)  # of a run that was resumed itself the first name is enough
    stem = run.name if origin is None else run.name.removesuffix(f" from {origin.checkpoint}")
    return f"{stem} from {address.name}"


async def _read(server: ServerState, body: LoadWeights) -> tuple[AdapterState, CheckpointInfo]:
    state, info = await server.in_worker(
        server.checkpoints.read, body.path, base_model=server.engine.base.name, optimizer=body.optimizer
    )
    server.recorder.audit("checkpoint_read", tinker_path=body.path)
    return state, info


@router.post("/weights_info", summary="Describe a checkpoint", responses={**NOT_FOUND})
async def weights_info(body: WeightsPath, server: Server) -> WeightsInfo:
    """What a client needs to know before it loads one."""
    info = await server.in_worker(server.checkpoints.info, body.tinker_path)
    lora = info.lora
    return WeightsInfo(
        base_model=info.base_model,
        lora_rank=lora.rank,
        train_unembed=lora.train_unembed,
        train_mlp=lora.train_mlp,
        train_attn=lora.train_attn,
    )
