"""A real Jupyter kernel, driven over its protocol."""

from __future__ import annotations

import queue
import threading
import time
import uuid
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
    comms: list[dict[str, Any]] = field(default_factory=list)  # contents of comm messages, with their type
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

    def complete(self, code: str) -> list[str]:
        """The whole lines that Tab offers with the cursor at the end of ``code``."""
        reply = self._client.complete(code, len(code), reply=True, timeout=CELL_SECONDS)["content"]
        return [code[: reply["cursor_start"]] + match for match in reply["matches"]]

    def help(self, code: str) -> str:
        """What ``code?`` shows, as text."""
        return self._client.inspect(code, len(code), reply=True, timeout=CELL_SECONDS)["content"]["data"]["text/plain"]

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

    def subshell(self) -> str:
        """A new subshell, such as JupyterLab makes for what it tells widgets."""
        message = self._client.session.msg("create_subshell_request", {})
        self._client.control_channel.send(message)
        while True:
            reply = self._client.get_control_msg(timeout=CELL_SECONDS)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return reply["content"]["subshell_id"]

    def ask(self, kind: str, content: dict[str, Any], subshell: str | None = None) -> dict[str, Any]:
        """The kernel's reply to a request on the shell channel, also while a cell runs."""
        message = self._client.session.msg(kind, content)
        message["header"]["subshell_id"] = subshell
        self._client.shell_channel.send(message)
        while True:
            reply = self._client.get_shell_msg(timeout=CELL_SECONDS)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return reply

    def widget_states(self) -> dict[str, Any]:
        """The states of all widgets by comm, as a page asks for them that was opened just now."""
        comm, session = uuid.uuid4().hex, self._client.session
        opened = session.msg(
            "comm_open",
            {"comm_id": comm, "target_name": "jupyter.widget.control", "data": {}},
            metadata={"version": "1.0.0"},
        )
        for message in (opened, session.msg("comm_msg", {"comm_id": comm, "data": {"method": "request_states"}})):
            self._client.shell_channel.send(message)
        while True:
            told = self._client.get_iopub_msg(timeout=CELL_SECONDS)
            if told["msg_type"] == "comm_msg" and told["content"]["comm_id"] == comm:
                return told["content"]["data"]["states"]

    def tell(self, comm_id: str, content: dict[str, Any], subshell: str | None = None) -> None:
        """Send a widget's custom message to its comm; returns at once."""
        data = {"method": "custom", "content": content}
        message = self._client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
        message["header"]["subshell_id"] = subshell
        self._client.shell_channel.send(message)

    def restart(self) -> None:
        """Restart the kernel, as the menu of a notebook does."""
        self._manager.restart_kernel()
        self._client.wait_for_ready(CELL_SECONDS)

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
            case "comm_open" | "comm_msg" | "comm_close" as kind:
                cell.comms.append({"type": kind, **content})
            case "error":
                cell.error, cell.error_name = "\n".join(content["traceback"]), content["ename"]

    return read
