"""create_app: one engine and one store behind the Tinker API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI

from txlab.config import ServerSettings
from txlab.server.auth import ApiKeyRequired
from txlab.server.document import DocumentedApp
from txlab.server.errors import install_error_handlers
from txlab.server.openai.routes import include_openai
from txlab.server.prefix import ForwardedPrefix
from txlab.server.routes import (
    admin,
    auth,
    bare_ids,
    checkpoints,
    downloads,
    futures,
    losses,
    models,
    runs,
    sampling,
    service,
    sessions,
    training,
    weights,
)
from txlab.server.sdk_version import check_user_agent
from txlab.server.state import ServerState
from txlab.server.wire.service import check_flags
from txlab.store.store import Store

if TYPE_CHECKING:
    from txlab.engine.engine import Engine


def create_app(engine: Engine, store: Store, settings: ServerSettings) -> FastAPI:
    """Build the application; ``settings.api_key`` must be set and ``settings.flags`` known, else ValueError.

    The app starts neither the engine nor a thread of its own before the first request. Whoever serves it without
    lifespan events calls ``app.state.server.close()`` on its event loop before it stops, so that held polls end.
    """
    check_flags(settings.flags)
    app = DocumentedApp(
        title="txlab", summary="A Tinker-compatible training API", lifespan=_close_at_end, redoc_url=None
    )
    app.state.server = ServerState(engine, store, settings)
    tinker = (
        service,
        auth,
        sessions,
        models,
        losses,
        training,
        weights,
        sampling,
        futures,
        runs,
        bare_ids,  # before the routes of checkpoints, which would take a name for a kind
        checkpoints,
        downloads,
        admin,
    )
    for routes in tinker:
        app.include_router(routes.router, prefix="/api/v1", dependencies=[Depends(check_user_agent)])
    include_openai(app, app.state.server)
    install_error_handlers(app)
    app.add_middleware(ApiKeyRequired, credentials=app.state.server.credentials)
    app.add_middleware(ForwardedPrefix)
    return app


@asynccontextmanager
async def _close_at_end(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.server.close()
