"""What ``model`` may name, and how its weights come to be sampled from."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from datetime import datetime

from txlab.engine.requests import (
    DropSnapshot,
    FreezeAdapter,
    LoadSnapshot,
    Sample,
    SampleResult,
    SnapshotGoneError,
)
from txlab.engine.validation import validate
from txlab.models.detokenizer import Vocabulary, vocabulary_of
from txlab.server.errors import ApiError
from txlab.server.openai.replies import ModelCard
from txlab.server.sessions import Model, Sampler
from txlab.server.state import ServerState
from txlab.store.checkpoint_info import SCHEME, CheckpointError, CheckpointInfo


@dataclass(frozen=True, slots=True)
class Weights:
    """What one request samples from. ``snapshot_id`` is None for the base model."""

    snapshot_id: str | None = None
    path: str | None = None  # of the checkpoint that the snapshot is loaded from
    model_id: str | None = None  # of the live adapter that was frozen for this request alone
    owner_id: str | None = None  # the model or sampler whose requests are recorded


class Catalog:
    """The models of one server. Everything runs on its event loop."""

    def __init__(self, server: ServerState):
        self._server = server
        self._since = int(time.time())
        self._loaded: set[str] = set()  # snapshots of checkpoints that the engine had when it was last asked
        self._loading = asyncio.Lock()

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of all models here."""
        return vocabulary_of(self._server.engine.base.tokenizer)

    # ------------------------------------------------------------------------------ cards

    def cards(self) -> list[ModelCard]:
        """Describe the base model and the live adapters, newest first; the newest of a name goes by the name."""
        base = self._server.engine.base.name
        cards = {base: self._card(base, self._since, base)}
        live = self._server.sessions.live_models()
        ids = {model.model_id for model in live}
        for model in live:
            name = model.model_id if model.name in cards or model.name in ids else model.name
            cards[name] = self._card(name, model.created_at, model.model_id)
        return list(cards.values())

    async def card(self, name: str) -> ModelCard:
        """Describe what ``name`` stands for; ApiError where that is nothing."""
        match await self._find(name):
            case Model() as model:
                return self._card(name, model.created_at, model.model_id)
            case CheckpointInfo() as checkpoint:
                return self._card(name, checkpoint.created, checkpoint.path)
            case Sampler() as sampler:
                return self._card(name, self._since, sampler.model_path or sampler.sampler_id)
        return self._card(name, self._since, name)

    def _card(self, name: str, created: datetime | int, root: str) -> ModelCard:
        engine = self._server.engine
        return ModelCard(
            id=name,
            created=created if isinstance(created, int) else int(created.timestamp()),
            root=root,
            parent=None if root == engine.base.name else engine.base.name,
            max_model_len=engine.limits.max_context,
        )

    # ---------------------------------------------------------------------------- weights

    async def hold(self, name: str) -> Weights:
        """Find weights by name and have the engine keep them; ``release`` lets go of them.

        Of a live adapter they are the present ones: the engine freezes them between two steps of its training.
        Raises ApiError where there is no such model.
        """
        match await self._find(name):
            case Model(model_id=model_id):
                return await self._freeze(model_id)
            case CheckpointInfo() as checkpoint:
                return await self._load(checkpoint)
            case Sampler() as sampler:
                path = sampler.model_path if sampler.inflight_of is None else None
                return Weights(sampler.snapshot_id, path, owner_id=sampler.sampler_id)
        return Weights()

    def release(self, weights: Weights) -> None:
        """Free what was frozen for one request; what came from a checkpoint stays for the next."""
        if weights.model_id is not None and weights.snapshot_id is not None:
            self._server.tell(DropSnapshot(weights.snapshot_id))

    async def draw(self, weights: Weights, request: Sample) -> SampleResult:
        """Sample; where the engine had to drop a checkpoint's weights, load them again."""
        try:
            result = await self._server.ask(request, weights.owner_id)
        except SnapshotGoneError:
            if weights.path is None or weights.snapshot_id is None:
                raise
            self._loaded.discard(weights.snapshot_id)
            await self._bring(weights.snapshot_id, weights.path)
            result = await self._server.ask(request, weights.owner_id)
        assert isinstance(result, SampleResult)
        return result

    async def _freeze(self, model_id: str) -> Weights:
        snapshot_id = f"openai-{secrets.token_hex(8)}"
        await self._server.ask(FreezeAdapter(model_id, snapshot_id))
        return Weights(snapshot_id, model_id=model_id, owner_id=model_id)

    async def _load(self, checkpoint: CheckpointInfo) -> Weights:
        snapshot_id = f"{checkpoint.path}@{checkpoint.created.isoformat()}"  # one that is overwritten is another
        await self._bring(snapshot_id, checkpoint.path)
        return Weights(snapshot_id, checkpoint.path, owner_id=checkpoint.address.model_id)

    async def _bring(self, snapshot_id: str, path: str) -> None:
        """Load a checkpoint once, however many wait for it."""
        async with self._loading:
            if snapshot_id in self._loaded:
                return
            server = self._server
            try:
                state, _ = await server.in_worker(
                    server.checkpoints.read, path, base_model=server.engine.base.name, optimizer=False
                )
            except CheckpointError as error:
                raise _unknown(str(error)) from None
            request = LoadSnapshot(snapshot_id, state, name=path)
            validate(request, server.engine.limits)
            await server.ask(request)
            self._loaded.add(snapshot_id)

    # ------------------------------------------------------------------------------ names

    async def _find(self, name: str) -> Model | Sampler | CheckpointInfo | None:
        """What ``name`` stands for, None for the base model. Of live adapters of one name it is the newest."""
        server = self._server
        if name == server.engine.base.name:
            return None
        if name.startswith(SCHEME):
            try:
                return await server.in_worker(server.checkpoints.info, name)
            except CheckpointError as error:
                raise _unknown(str(error)) from None
        try:
            live = server.sessions.live_models()
            named = [one for one in live if one.model_id == name] or [one for one in live if one.name == name]
            if named:
                return server.sessions.model(named[0].model_id)  # which notes that its session is in use
            return server.sessions.sampler(name)
        except ApiError as error:
            raise self._no_such_model(name, error) from None

    def _no_such_model(self, name: str, error: ApiError) -> ApiError:
        """Explain by the session that ended, or by what there is."""
        if error.status != 404:
            return _unknown(str(error))
        alive = ", ".join(repr(card.id) for card in self.cards()[:20])
        return _unknown(
            f"model {name!r} does not exist here; there are {alive}, and checkpoints by their {SCHEME} path"
        )


def _unknown(message: str) -> ApiError:
    return ApiError(404, message, "model")
