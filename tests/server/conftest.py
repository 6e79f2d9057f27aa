"""A server with a fake engine on a real port, and the real SDK to talk to it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
import uvicorn

from tests.server.fake_engine import FakeEngine
from txlab.config import ServerSettings
from txlab.server.app import create_app
from txlab.server.auth import new_api_key
from txlab.server.state import ServerState
from txlab.store.checkpoints import Checkpoints
from txlab.store.store import Store

# The command line's entry point, left without Python's finalization: there the SDK's daemon threads, killed in the
# middle of a call into Rust, now and then abort a process that has done all its work.
TINKER = """
import os, sys
from tinker.cli.__main__ import main
try:
    main()
except SystemExit as end:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code if isinstance(end.code, int) else bool(end.code))
"""


@dataclass
class Running:
    """A server that answers, and what is behind it."""

    url: str
    key: str
    engine: FakeEngine
    checkpoints: Checkpoints
    state: ServerState
    loop: asyncio.AbstractEventLoop
    clients: list[tinker.ServiceClient] = field(default_factory=list)

    def client(self, **kwargs) -> tinker.ServiceClient:
        client = tinker.ServiceClient(base_url=self.url, api_key=self.key, **kwargs)
        self.clients.append(client)
        return client

    def close_clients(self) -> None:
        """End their heartbeats, which would go on, and complain, long after the server has stopped."""
        for client in self.clients:
            with suppress(tinker.TinkerError):
                client.close("success").result(timeout=20)

    def tinker(self, folder: Path, *arguments: str, fails: bool = False) -> str:
        """Run the ``tinker`` command line in ``folder``: what it prints. Fails where it does, unless ``fails``."""
        own = {"TINKER_BASE_URL": self.url, "TINKER_API_KEY": self.key, "HOME": str(folder), "COLUMNS": "250"}
        line = [sys.executable, "-c", TINKER, *arguments]
        done = subprocess.run(
            line, env=os.environ | own, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    def post(self, route: str, body=None, **kwargs) -> httpx.Response:
        headers = {"X-API-Key": self.key} | kwargs.pop("headers", {})
        return httpx.post(f"{self.url}/api/v1/{route}", json=body, headers=headers, timeout=20, **kwargs)

    def get(self, route: str) -> httpx.Response:
        return httpx.get(f"{self.url}/api/v1/{route}", headers={"X-API-Key": self.key}, timeout=20)

    def retrieve(self, request_id: str) -> httpx.Response:
        return self.post("retrieve_future", {"request_id": request_id})

    def result(self, request_id: str) -> dict[str, Any]:
        """What the request gives in the end, however many polls that takes."""
        while (answer := self.retrieve(request_id)).status_code == 408:
            pass
        return answer.json()

    def session(self, **body) -> str:
        return self.post("create_session", {"tags": []} | body).json()["session_id"]

    def model(self, session_id: str, number: int = 0) -> str:
        body = {
            "session_id": session_id,
            "model_seq_id": number,
            "base_model": "fake/model",
            "lora_config": {"rank": 8},
        }
        return self.result(self.post("create_model", body).json()["request_id"])["model_id"]


@contextmanager
def serve(engine: FakeEngine, root: Path, settings: ServerSettings) -> Iterator[Running]:
    """Serve on a free port, from a thread of its own."""
    settings = replace(settings, api_key=settings.api_key or new_api_key())
    store = Store(root)
    app = create_app(engine, store, settings)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: asyncio sets NODELAY
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
    loops = []

    async def main():
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    running = Running(url, settings.api_key, engine, store.checkpoints, app.state.server, loops[0])
    try:
        yield running
        running.close_clients()
    finally:
        loops[0].call_soon_threadsafe(app.state.server.close)
        server.should_exit = True
        thread.join()
        store.close()


@pytest.fixture(autouse=True)
def quiet_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of the SDK wait for its telemetry; here nobody reads it."""
    monkeypatch.setenv("TINKER_TELEMETRY", "0")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path)
    yield engine
    engine.stop()


@pytest.fixture
def server(engine: FakeEngine, tmp_path: Path) -> Iterator[Running]:
    with serve(engine, tmp_path / "store", ServerSettings(poll_seconds=0.3)) as running:
        yield running
