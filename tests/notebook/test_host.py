"""Hosting an app on a thread of its own: start, stop, and what uvicorn must not do to the process."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from txlab.notebook import host as host_module
from txlab.notebook.errors import TxlabError
from txlab.notebook.host import Host, bind


class App:
    """Answers; a request to /hold is held until it is cancelled."""

    def __init__(self) -> None:
        self.holding = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/hold":
            self.holding.set()
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})


def serve(app: Any, port: int = 0) -> tuple[Host, str]:
    listener = bind("127.0.0.1", port)
    host = Host(app, listener, "thread", before_stop=lambda: None)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    host.start()
    return host, url


@pytest.fixture
def hosted() -> Iterator[tuple[Host, str]]:
    host, url = serve(App())
    yield host, url
    host.stop()


def test_answers_from_the_moment_start_returns(hosted: tuple[Host, str]) -> None:
    assert httpx.get(hosted[1]).text == "here"


def test_signals_stay_where_they_were() -> None:
    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGINT, handler)
    try:
        host, _ = serve(App())
        assert signal.getsignal(signal.SIGINT) is handler
        host.stop()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_stop_frees_the_port_at_once(hosted: tuple[Host, str]) -> None:
    host, url = hosted
    httpx.get(url)
    host.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    again, _ = serve(App(), int(url.rsplit(":", 1)[1]))
    assert httpx.get(url).text == "here"
    again.stop()


def test_stop_ends_held_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "STOP_SECONDS", 3600.0)  # not saved by giving up
    app = App()
    host, url = serve(app)
    ended: list[object] = []

    def hold() -> None:
        try:
            ended.append(httpx.get(f"{url}/hold", timeout=60).status_code)
        except httpx.HTTPError as error:
            ended.append(error)

    waiter = threading.Thread(target=hold, daemon=True)
    waiter.start()
    assert app.holding.wait(10)
    stopper = threading.Thread(target=host.stop, daemon=True)
    stopper.start()
    waiter.join(20)
    stopper.join(20)
    assert ended
    assert not stopper.is_alive()


def test_stop_leaves_nothing_behind() -> None:
    threads, interval = threading.active_count(), sys.getswitchinterval()
    host, _ = serve(App())
    assert sys.getswitchinterval() == pytest.approx(0.001)
    host.stop()
    host.stop()  # harmless
    assert threading.active_count() == threads
    assert sys.getswitchinterval() == interval


def test_start_up_that_exits_is_an_error_here() -> None:
    listener = bind("127.0.0.1", 0)
    listener.close()  # the loop refuses a closed socket
    host = Host(App(), listener, "thread", before_stop=lambda: None)
    threads = threading.active_count()
    with pytest.raises(OSError, match=r"descriptor|closed|socket"):
        host.start()
    assert threading.active_count() == threads


def test_connections_have_no_nagle_delay() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_port_in_use_names_the_fix() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TxlabError, match=rf"Port {port} of 127.0.0.1 is in use.*port 0"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("no.such.host.invalid", 0), ("192.0.2.1", 0)])
def test_addresses_that_cannot_be_had(host: str, port: int) -> None:
    with pytest.raises(TxlabError, match="Choose"):
        bind(host, port)


def test_loops_that_cannot_be_had_here() -> None:
    with bind("127.0.0.1", 0) as listener:
        for name, message in {"control": "only in a Jupyter kernel", "turbo": "no loop 'turbo'"}.items():
            with pytest.raises(TxlabError, match=message):
                Host(App(), listener, name, before_stop=lambda: None)


async def here() -> str:
    return threading.current_thread().name


async def broken() -> None:
    raise KeyError("x")


def test_work_runs_on_the_servers_loop(hosted: tuple[Host, str]) -> None:
    host = hosted[0]
    assert host.run(here()) == "txlab-server"
    with pytest.raises(KeyError):
        host.run(broken())

    async def waits_for_itself() -> str:
        return host.run(here())

    with pytest.raises(TxlabError, match="it is the one that asks"):
        host.run(waits_for_itself())
    host.stop()
    with pytest.raises(TxlabError, match="it has stopped"):
        host.run(here())


def test_whoever_waits_for_work_when_the_server_stops_is_told(hosted: tuple[Host, str]) -> None:
    host, began = hosted[0], threading.Event()

    async def never() -> None:
        began.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lambda: host.run(never()))
        assert began.wait(20)
        host.stop()
        with pytest.raises(TxlabError, match="stopped before this was done"):
            waiting.result(20)
