"""A real Jupyter kernel, driven over its protocol."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.manager import KernelManager

CELL_SECONDS = 120.0


@dataclass
class Cell:
    """What one cell answered."""

    status: str = ""
    text: str = ""  # streams and results
    displays: list[dict[str, Any]] = field(default_factory=list)  # mime bundles in order, updates included
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)  # the last of them by display id
    error: str = ""  # the traceback as shown
    error_name: str = ""
    seconds: float = 0.0


class Kernel:
    """Runs cells one after the other."""

    def __init__(self, manager: KernelManager):
        self._manager = manager
        self._client = manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(CELL_SECONDS)
        self._hangs = False

    def run(self, code: str, interrupt_after: float | None = None) -> Cell:
        """Run a cell to its end, interrupted after so many seconds."""
        assert not self._hangs, "an earlier cell of this kernel did not end"
        cell, started = Cell(), time.monotonic()
        timer = threading.Timer(interrupt_after or 0.0, self._manager.interrupt_kernel)
        if interrupt_after is not None:
            timer.start()
        try:
            reply = self._client.execute_interactive(code, output_hook=_reader(cell), timeout=CELL_SECONDS)
        except TimeoutError:
            self._hangs = True  # what follows in this kernel would wait as long
            raise
        finally:
            timer.cancel()
        cell.status, cell.seconds = reply["content"]["status"], time.monotonic() - started
        return cell

    def ok(self, code: str) -> Cell:
        """Run a cell that must not fail."""
        cell = self.run(code)
        assert cell.status == "ok", cell.error
        return cell

    @contextmanager
    def running(self, code: str) -> Iterator[None]:
        """Let a cell run while the body does something else; the cell ends before the body is left."""
        message = self._client.execute(code)
        yield
        while True:
            try:
                reply = self._client.get_shell_msg(timeout=CELL_SECONDS)
            except queue.Empty:
                raise AssertionError("the cell did not end") from None
            if reply["parent_header"].get("msg_id") == message:
                assert reply["content"]["status"] == "ok"
                break

    def close(self) -> None:
        """Shut the kernel down, as the Jupyter server does."""
        self._client.stop_channels()
        self._manager.shutdown_kernel()


@contextmanager
def open_kernel(env: dict[str, str]) -> Iterator[Kernel]:
    """A fresh kernel with the environment ``env``."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=env)
    try:
        kernel = Kernel(manager)
        yield kernel
        kernel.close()
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


def _reader(cell: Cell) -> Any:
    def read(message: dict[str, Any]) -> None:
        content = message["content"]
        match message["header"]["msg_type"]:
            case "stream":
                cell.text += content["text"]
            case "execute_result":
                cell.text += content["data"].get("text/plain", "")
            case "display_data" | "update_display_data":
                cell.displays.append(content["data"])
                cell.latest[content.get("transient", {}).get("display_id", "")] = content["data"]
            case "error":
                cell.error, cell.error_name = "\n".join(content["traceback"]), content["ename"]

    return read
