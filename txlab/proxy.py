"""Labs behind a Jupyter server: jupyter-server-proxy shows the newest one at ``<base url>/txlab/``.

Each lab leaves a note of its address and key in Jupyter's runtime folder, which only its user may read. When somebody
first asks for ``/txlab/``, the Jupyter server starts ``python -m txlab.proxy PORT``. It passes every connection on to
the newest lab that answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

START_SECONDS = 20.0
LOCK_SECONDS = 5.0
CHUNK_BYTES = 1 << 16
NO_LAB = b"No lab runs on this Jupyter server. Start one in a notebook: %load_ext txlab, then %txserve.\n"
DEAD_LAB = (
    "The lab at {} has ended with its kernel. What was saved is still there; sessions are not. "
    "Start one in a notebook: %load_ext txlab, then %txserve; then make a new ServiceClient.\n"
)


def server_process() -> dict[str, Any]:
    """What jupyter-server-proxy asks of an entry point: how ``/txlab/`` is served, and its tile in the launcher."""
    return {
        "command": [sys.executable, "-m", "txlab.proxy", "{port}"],
        "timeout": START_SECONDS,
        "launcher_entry": {"title": "txlab API", "path_info": "txlab/docs", "category": "Other"},
    }


# ---------------------------------------------------------------------------------- where the labs are


@dataclass(frozen=True, slots=True)
class Announced:
    """A lab that runs."""

    url: str
    api_key: str | None = field(repr=False)  # None where it could not be kept from others


@contextmanager
def announce(url: str, api_key: str | None = None) -> Iterator[bool]:
    """While open, the lab of this process is known to listen at ``url``. Yields whether its key is known too."""
    from filelock import FileLock

    note = _folder() / f"txlab-{os.getpid()}.json"
    lock = FileLock(_lock_of(note), thread_local=False)  # the system frees it when this process is killed
    kept = False
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_SECONDS)
        kept = _write(note, url, api_key)
    except OSError as error:  # only ``/txlab/`` and ``txlab key`` need it
        logger.warning("This lab is not to be found at /txlab/, nor its key by txlab key: %s", error)
    owner = os.getpid()
    try:
        yield kept
    finally:
        if os.getpid() == owner:  # a forked child that ends has a copy of this
            lock.release()
            _remove(note)


def _write(note: Path, url: str, api_key: str | None) -> bool:
    """Leave a note that nobody else can read; whether the key is in it. It is not where the folder knows no rights."""
    from jupyter_core.paths import secure_write

    try:
        with secure_write(str(note)) as file:
            file.write(json.dumps({"url": url, "api_key": api_key}))
        return True
    except RuntimeError as error:
        logger.warning("The key of this lab is not to be found by txlab key: %s", error)
    note.write_text(json.dumps({"url": url}))
    return False


def announced() -> list[str]:
    """The addresses of the labs of this user, the newest first."""
    return [lab.url for lab in running_labs()]


def running_labs() -> list[Announced]:
    """The labs of this user, the newest first."""
    return _look_around()[0]


def _look_around() -> tuple[list[Announced], list[Announced]]:
    """The labs that run, and those whose process died since anybody looked; the newest first."""
    running: list[tuple[int, Announced]] = []
    died: list[tuple[int, Announced]] = []
    for note in _folder().glob("txlab-*.json"):
        with suppress(OSError, ValueError, KeyError):  # gone meanwhile, or half written
            alive = _is_alive(note)
            try:
                about = json.loads(note.read_text())
                lab = Announced(str(about["url"]), about.get("api_key"))
                (running if alive else died).append((note.stat().st_mtime_ns, lab))
            finally:
                if not alive:
                    _remove(note)  # what its port carries now may be anything
    return _newest_first(running), _newest_first(died)


def _newest_first(labs: list[tuple[int, Announced]]) -> list[Announced]:
    return [lab for _, lab in sorted(labs, key=lambda entry: entry[0], reverse=True)]


def _is_alive(note: Path) -> bool:
    """Whether the process that left the note still holds its lock."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(_lock_of(note), timeout=0):
            return False
    except Timeout:
        return True


def _remove(note: Path) -> None:
    with suppress(OSError):
        note.unlink(missing_ok=True)
        _lock_of(note).unlink(missing_ok=True)


def _lock_of(note: Path) -> Path:
    return note.with_suffix(".lock")


def _folder() -> Path:
    from jupyter_core.paths import jupyter_runtime_dir

    return Path(jupyter_runtime_dir())


# ------------------------------------------------------------------------------- passing connections on


async def forward(port: int) -> None:
    """Pass connections to ``port`` on to the newest lab, until cancelled."""
    async with await asyncio.start_server(_Passage().take, "127.0.0.1", port) as server:
        await server.serve_forever()


class _Passage:
    """Passes connections on, and remembers the last lab that died, so that its clients are told."""

    def __init__(self) -> None:
        self._died: str | None = None

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on."""
        running, died = _look_around()
        self._died = next((lab.url for lab in died), self._died)
        for lab in running:
            address = urlsplit(lab.url)
            with suppress(OSError):  # one that is about to stop
                lab_reader, lab_writer = await asyncio.open_connection(address.hostname, address.port)
                await asyncio.gather(_copy(reader, lab_writer), _copy(lab_reader, writer))
                return
        await _refuse(reader, writer, DEAD_LAB.format(self._died).encode() if self._died else NO_LAB)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until either side ends, and end the other."""
    with suppress(ConnectionError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> None:
    """Answer 503 to whatever is asked."""
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(text)}\r\n"
    writer.write(head.encode() + b"Content-Type: text/plain\r\nConnection: close\r\n\r\n" + text)
    with suppress(ConnectionError):
        while await reader.read(CHUNK_BYTES):  # a reset before all was read would lose the answer
            pass
    writer.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(forward(int(sys.argv[1])))
