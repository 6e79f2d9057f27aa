"""create_app: one engine and one store behind the Tinker API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from txlab.config import ServerSettings
from txlab.server.auth import ApiKeyRequired, check_api_key
from txlab.server.errors import install_error_handlers
from txlab.server.routes import futures, models, sampling, service, sessions, training, weights
from txlab.server.state import ServerState
from txlab.store.checkpoints import Checkpoints

if TYPE_CHECKING:
    from txlab.engine.engine import Engine


def create_app(engine: Engine, checkpoints: Checkpoints, settings: ServerSettings) -> FastAPI:
    """Build the application; ``settings.api_key`` must be set, else ValueError.

    The app starts neither the engine nor a thread of its own before the first request. Whoever serves it without
    lifespan events calls ``app.state.server.close()`` on its event loop before it stops, so that held polls end.
    """
    key = check_api_key(settings.api_key)
    app = FastAPI(title="txlab", summary="A Tinker-compatible training API", lifespan=_close_at_end, redoc_url=None)
    app.state.server = ServerState(engine, checkpoints, settings)
    for routes in (service, sessions, models, training, weights, sampling, futures):
        app.include_router(routes.router, prefix="/api/v1")
    install_error_handlers(app)
    app.add_middleware(ApiKeyRequired, key=key)
    return app


@asynccontextmanager
async def _close_at_end(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.server.close()
