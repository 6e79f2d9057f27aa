"""Serves an ASGI app in this process, on a loop of choice; start and stop are symmetric and wait."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import uvicorn

from txlab.notebook.errors import TxlabError
from txlab.notebook.forks import in_forked_child, let_go
from txlab.notebook.loops import LOOPS, choose_loop, heartbeat

SWITCH_SECONDS = 0.001  # how long a computing cell may hold the interpreter; Python's 5 ms would delay every request
GRACE_SECONDS = 1  # for requests still held when the server stops
STOP_SECONDS = 5.0

T = TypeVar("T")


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 is any free one. Raises TxlabError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only for sockets that name their protocol: 1 ms a request instead of 44 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":  # elsewhere the option would allow two servers on one port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise TxlabError(_explain(error, host, port)) from None
    return listener


def _explain(error: OSError | OverflowError, host: str, port: int) -> str:
    if isinstance(error, OverflowError):
        return f"{port} is not a port. Choose one below 65536; port 0 takes any free one."
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use. Choose another (port 0 takes any free one), or stop what runs there."
    return f"Cannot listen on {host}, port {port}: {error.strerror or error}. Choose another host or port."


class Host:
    """An ASGI app behind a listening socket, on the loop ``loop`` (auto, control, main or thread).

    ``before_stop`` is called on that loop when the server stops, to end what requests wait for. Where it is ``prompt``,
    a cell that computes gives way to it at once, which slows the cell a little.
    """

    def __init__(
        self,
        app: Any,
        listener: socket.socket,
        loop: str,
        before_stop: Callable[[], None] = lambda: None,
        *,
        prompt: bool = True,
    ):
        self.loop_name = choose_loop(loop)
        self._prompt = prompt
        self.listener = listener
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=GRACE_SECONDS,
            ),
            before_stop,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = ExitStack()

    def start(self) -> None:
        """Serve; returns when the server answers."""
        self._server.config.load()  # imports, off the loop
        with ExitStack() as stack:
            if self._prompt:
                stack.enter_context(_switch_interval(SWITCH_SECONDS))
                stack.enter_context(heartbeat())
            loop = stack.enter_context(LOOPS[self.loop_name]())
            asyncio.run_coroutine_threadsafe(self._server.open(self.listener), loop).result()
            stack.callback(self._close, loop)
            stack.enter_context(in_forked_child(self._server.let_go_of_connections))
            self._stack = stack.pop_all()
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the server's loop, where all of the server's state belongs, and wait for what it returns.

        Any thread may wait, the loop's own only where that is the cells' loop. Raises what ``work`` raises, and
        TxlabError where the server does not run, stops meanwhile, or its loop would wait for itself.
        """
        loop = self._loop
        if loop is None or not loop.is_running() or (self.loop_name != "main" and _runs_here(loop)):
            work.close()
            raise TxlabError("The server's loop cannot take this up: it has stopped, or it is the one that asks.")
        try:
            return asyncio.run_coroutine_threadsafe(work, loop).result()
        except CancelledError:
            raise TxlabError("The server stopped before this was done.") from None

    def stop_listening(self) -> None:
        """Free the port at once; call it on the loop. What was asked before is still answered."""
        for server in self._server.servers:
            server.close()

    def stop(self) -> None:
        """End every request and free the port; returns when it is free. A second call does nothing."""
        self._loop = None
        self._stack.close()

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        self._server.should_exit = True
        if loop.is_running():  # a kernel on its way out has stopped its loops already
            with suppress(FutureTimeoutError):
                asyncio.run_coroutine_threadsafe(self._server.closed(), loop).result(STOP_SECONDS)


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    with suppress(RuntimeError):
        return asyncio.get_running_loop() is loop
    return False


class _Server(uvicorn.Server):
    """uvicorn without its claims on the process: it takes no signals and never exits."""

    def __init__(self, config: uvicorn.Config, before_stop: Callable[[], None]):
        super().__init__(config)
        self._before_stop = before_stop

    async def open(self, listener: socket.socket) -> None:
        """Start serving; returns when the server answers."""
        self._answering = asyncio.Event()
        self._serving = asyncio.create_task(self._serve_guarded(listener))
        answering = asyncio.create_task(self._answering.wait())
        await asyncio.wait({self._serving, answering}, return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            answering.cancel()
            await self._serving

    async def closed(self) -> None:
        """Wait until nothing of the server runs any more."""
        await asyncio.wait({self._serving})
        if cancelled := set(self.server_state.tasks):
            await asyncio.wait(cancelled, timeout=GRACE_SECONDS)

    def let_go_of_connections(self) -> None:
        """Give up a forked child's copies of the connections, whose clients would not see the parent's end."""
        for connection in self.server_state.connections:
            let_go(connection.transport.get_extra_info("socket").fileno())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._answering.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._before_stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # SIGINT belongs to the cell

    async def _serve_guarded(self, listener: socket.socket) -> None:
        try:
            await self.serve([listener])
        except SystemExit as error:  # would end the kernel's control thread
            raise TxlabError(f"The server ended at start-up (exit {error.code}); its log says why.") from None


@contextmanager
def _switch_interval(seconds: float) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
