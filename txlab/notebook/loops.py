"""The event loops that can carry the server, each as a context that yields a running loop.

ipykernel runs several loops on several threads. The *control* loop answers shutdown and debugger messages
and is free while a cell computes or blocks; the *main* loop runs the cells.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from txlab.notebook.errors import TxlabError
from txlab.threads import daemon_thread

HEARTBEAT_SECONDS = 0.25
JOIN_SECONDS = 5.0


def running_kernel() -> Any | None:
    """The ipykernel of this process, None in plain IPython and in scripts."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return kernel if hasattr(kernel, "control_thread") else None


def choose_loop(name: str) -> str:
    """``auto`` becomes ``control`` in a kernel and ``thread`` elsewhere. Raises TxlabError for what cannot be had."""
    if name not in ("auto", *LOOPS):
        raise TxlabError(f"There is no loop {name!r}. Choose one of auto, {', '.join(LOOPS)}.")
    in_kernel = running_kernel() is not None
    if name == "auto":
        return "control" if in_kernel else "thread"
    if name != "thread" and not in_kernel:
        raise TxlabError(f"The {name} loop exists only in a Jupyter kernel. Use loop='thread' or loop='auto' here.")
    return name


@contextmanager
def control_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of the kernel's control channel: alive while a cell computes, sleeps or sits at a breakpoint."""
    yield _kernel().control_thread.io_loop.asyncio_loop


@contextmanager
def main_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop that runs the cells. A cell that waits for a future runs the loop meanwhile.

    A cell that blocks in any other way (``time.sleep``, a blocking HTTP client) holds up the server until it ends.
    """
    import nest_asyncio2

    loop = _kernel().io_loop.asyncio_loop
    nest_asyncio2.apply(loop)
    with cooperative_futures(loop):
        yield loop


@contextmanager
def thread_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of our own on a daemon thread."""
    opened: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run_until_closed() -> None:
        closing = asyncio.Event()
        opened.set_result((asyncio.get_running_loop(), closing))
        await closing.wait()

    def run() -> None:
        with asyncio.Runner() as runner:  # cancels what is left on the loop when it ends
            runner.run(run_until_closed())

    thread = daemon_thread(run, "txlab-server")
    thread.start()
    loop, closing = opened.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(closing.set)
        thread.join(JOIN_SECONDS)


LOOPS: dict[str, Callable[[], AbstractContextManager[asyncio.AbstractEventLoop]]] = {
    "control": control_loop,
    "main": main_loop,
    "thread": thread_loop,
}


@contextmanager
def heartbeat() -> Iterator[None]:
    """Keeps the kernel's main loop turning over, so that an interrupt of an idle ``await`` is seen at once.

    The kernel's signal handler only schedules the cancellation; a loop asleep in ``select`` does not notice.
    """
    kernel = running_kernel()
    if kernel is None:
        yield
        return
    loop = kernel.io_loop.asyncio_loop
    beat = asyncio.run_coroutine_threadsafe(_beat(), loop)
    try:
        yield
    finally:
        if loop.is_running():
            beat.cancel()


async def _beat() -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)


def allow_asyncio_run() -> None:
    """Make ``asyncio.run(...)`` work in the cells of this kernel, as programs written for a terminal use it.

    A kernel's loop is always running, so Python refuses to start another below it. This lifts the ban by patching
    asyncio (nest_asyncio2) until the kernel ends; it is never done unasked. ``await main()`` needs no patch.
    """
    import nest_asyncio2

    kernel = running_kernel()
    if kernel is not None:
        nest_asyncio2.apply(kernel.io_loop.asyncio_loop)


@contextmanager
def cooperative_futures(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """While open, waiting for a ``concurrent.futures.Future`` on this thread runs ``loop`` until the future is done.

    ``loop`` must allow nested runs and belong to the calling thread.
    """
    thread = threading.get_ident()
    result, exception = Future.result, Future.exception

    def cooperative(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wait(self: Future[Any], timeout: float | None = None) -> Any:
            if self.done() or threading.get_ident() != thread or not loop.is_running():
                return method(self, timeout)
            _run_until_done(loop, self, timeout)
            return method(self, 0)

        return wait

    Future.result, Future.exception = cooperative(result), cooperative(exception)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Future.result, Future.exception = result, exception  # type: ignore[method-assign]


def _run_until_done(loop: asyncio.AbstractEventLoop, future: Future[Any], timeout: float | None) -> None:
    """Run ``loop`` until ``future`` is done or ``timeout`` seconds are over. Raises KeyboardInterrupt."""
    waiter = loop.create_future()

    def finish() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def wake(_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish)

    future.add_done_callback(wake)
    timer = None if timeout is None else loop.call_later(timeout, finish)
    try:
        with _interrupt_calls(lambda: loop.call_soon_threadsafe(waiter.cancel)):
            loop.run_until_complete(waiter)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if timer is not None:
            timer.cancel()


@contextmanager
def _interrupt_calls(action: Callable[[], object]) -> Iterator[None]:
    """While open, SIGINT calls ``action``; raised in the middle of the loop it would hit a request, not the cell."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _kernel() -> Any:
    kernel = running_kernel()
    if kernel is None:
        raise TxlabError("This loop exists only in a Jupyter kernel.")
    return kernel
