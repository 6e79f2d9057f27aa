"""Adapters: made, described, unloaded."""

from __future__ import annotations

from fastapi import APIRouter

from txlab.engine.requests import CreateAdapter
from txlab.engine.validation import validate
from txlab.lora.state import LoraConfig
from txlab.server import controls
from txlab.server.errors import ApiError
from txlab.server.futures import Reply, json_reply
from txlab.server.sessions import Model
from txlab.server.state import Server
from txlab.server.wire.futures import UntypedFuture
from txlab.server.wire.models import CreateModel, ModelAddress, ModelData, ModelInfo, OptimizerConfig

router = APIRouter(tags=["models"])


def check_optimizer(config: OptimizerConfig) -> None:
    """Refuse optimizers that this server does not have."""
    if config.type != "adamw":
        raise ApiError(400, f"optimizer_config.type is {config.type!r}: this server has 'adamw' only")


@router.post("/create_model", summary="Make a fresh adapter")
async def create_model(body: CreateModel, server: Server) -> UntypedFuture:
    """Its id is known to the client beforehand: ``{session_id}:train:{model_seq_id}``."""
    session = server.sessions.get(body.session_id)
    server.check_base_model(body.base_model)
    check_optimizer(body.optimizer_config)
    model_id = session.model_id(body.model_seq_id)

    async def create() -> Reply:
        name = server.sessions.next_model_name(session, body.user_metadata)
        lora = LoraConfig(**body.lora_config.model_dump())
        request = CreateAdapter(model_id, lora, name)
        validate(request, server.engine.limits)
        model = Model(model_id, session.session_id, name, lora, body.user_metadata)
        with session.holding(model):
            await server.ask(request)
        server.recorder.made(model)
        return json_reply({"model_id": model_id, "type": "create_model"})

    return server.start("create_model", model_id, create, model_id=model_id)


@router.post("/get_info", summary="Describe an adapter")
async def get_info(body: ModelAddress, server: Server) -> ModelInfo:
    """The tokenizer is named by the folder that it was saved to, which loads without a network."""
    model = server.sessions.model(body.model_id)
    base = server.engine.base
    data = ModelData(arch=base.config.architecture, model_name=base.name, tokenizer_id=str(base.tokenizer_dir))
    return ModelInfo(model_id=model.model_id, model_data=data, model_name=base.name, lora_rank=model.lora.rank)


@router.post("/unload_model", summary="Free an adapter")
async def unload_model(body: ModelAddress, server: Server) -> UntypedFuture:
    """Snapshots taken of it live on."""
    if not server.futures.knows("unload_model", body.model_id):  # the same request once more finds no model
        server.sessions.model(body.model_id)

    async def unload() -> Reply:
        await controls.unload(server, body.model_id)
        return json_reply({"model_id": body.model_id, "type": "unload_model"})

    return server.start("unload_model", body.model_id, unload, model_id=body.model_id)
