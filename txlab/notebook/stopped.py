"""Stop sign of a lab: it answers at the stopped lab's port and tells old clients to be replaced by new ones.

The Tinker SDK tries for minutes, often for ever, to reach a server that is gone. So the port stays with this process,
and whatever is asked there is refused with one sentence. The next lab of this process takes over port and key, so that
addresses in terminals and other kernels stay good; a lab of another process gets the port when it asks for it.
"""

from __future__ import annotations

import http.client
import os
import socket
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from txlab.notebook.errors import TxlabError
from txlab.notebook.host import Host, bind
from txlab.server.errors import refusal
from txlab.threads import daemon_thread

MESSAGE = "this lab was stopped: when one runs again (%txserve), make a new ServiceClient and go on from a checkpoint"
HEADER, STOPPED = "X-Txlab", "stopped"  # by which a lab of another process knows a sign
ASK_SECONDS = 2.0

_signs: list[StopSign] = []  # of this process, oldest first


class StopSign:
    """Answers whatever is asked at a stopped lab's address. ``listener`` is its listening socket."""

    def __init__(self, host: str, listener: socket.socket, api_key: str):
        self.host, self.api_key = host, api_key
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._server = Host(self, listener, "thread", prompt=False)

    def put_up(self) -> None:
        """Answer from now on, unless this process is about to end."""
        try:
            self._server.start()
        except RuntimeError:  # Python starts no thread any more
            self._listener.close()
        else:
            _signs.append(self)

    def share(self) -> socket.socket:
        """One more listening socket at the same port, for the lab that is to follow."""
        return self._listener.dup()

    def take_down(self) -> None:
        """Free the port, as far as it is not shared. A second call does nothing."""
        if self in _signs:
            _signs.remove(self)
            self._server.stop()

    def leave_to_parent(self) -> None:
        """Let go of the socket in a forked child, where nothing answers."""
        self._listener.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        while (await receive()).get("more_body"):  # a client that still sends would take the answer for a broken line
            pass
        method, path = scope["method"], scope["path"]
        if (method, path) == ("DELETE", "/"):  # a page of another site cannot send this unasked
            self._server.stop_listening()
            daemon_thread(self.take_down, "txlab-stopped").start()
        response = _response(method, path)
        response.headers[HEADER] = STOPPED
        await response(scope, receive, send)


def _response(method: str, path: str) -> JSONResponse:
    """The sentence, in the form that the SDK raises at once; 410 ends a client's heartbeat."""
    if path.endswith("/retrieve_future"):
        return JSONResponse({"error": MESSAGE, "category": "user"})
    if path.endswith("/finish") or (method, path) == ("DELETE", "/"):
        return JSONResponse({})  # a client that ends its session has what it wants
    return refusal(path, 410 if path.endswith("/session_heartbeat") else 400, MESSAGE)


def sign_at(host: str, port: int) -> StopSign | None:
    """The sign whose port a lab may take over: the one at ``port``; where any port will do, the newest at ``host``."""
    return next((sign for sign in reversed(_signs) if sign.host == host and port in (0, sign.port)), None)


def any_sign() -> bool:
    """Whether clients of a lab that was stopped in this process may be left."""
    return bool(_signs)


def free_port(port: int | None = None) -> None:
    """Take down the signs at ``port``; all signs where it is None."""
    for sign in [sign for sign in _signs if port in (None, sign.port)]:
        sign.take_down()


def farewell(url: str, sign: StopSign | None) -> str:
    """Tell what is left of the lab at ``url``."""
    if sign is None:
        return f"txlab: the lab at {url} is stopped; its port and memory are free."
    return (
        f"txlab: the lab at {url} is stopped; its memory is free. Clients that it had are told so when they are used: "
        "when a lab runs again, make a new tinker.ServiceClient(). "
        f"Port {sign.port} is kept for that until the next lab takes it over, or %txstop --free-port."
    )


def bind_or_ask(host: str, port: int) -> socket.socket:
    """``bind``, also where another process keeps the port for a lab that was stopped there: it gives it up."""
    try:
        return bind(host, port)
    except TxlabError:
        if not _ask_for(host, port):
            raise
    return bind(host, port)


def _ask_for(host: str, port: int) -> bool:
    """Whether a sign stood at ``port`` and has gone."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    with suppress(OSError, OverflowError, http.client.HTTPException):
        if _ask(near, port, "GET").get(HEADER) == STOPPED:
            return _ask(near, port, "DELETE").get(HEADER) == STOPPED
    return False


def _ask(host: str, port: int, method: str) -> http.client.HTTPMessage:
    """The headers of the answer."""
    connection = http.client.HTTPConnection(host, port, timeout=ASK_SECONDS)
    try:
        connection.request(method, "/")
        return connection.getresponse().headers
    finally:
        connection.close()


def _in_child() -> None:
    for sign in _signs:
        sign.leave_to_parent()
    _signs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
