"""Keeps the lab's views within reach of every page while a cell runs.

A page that is opened or reloaded asks the kernel who it is and which widgets there are. It asks the main shell, which
a running cell blocks. Here a subshell of the lab's own answers that, and what pages send to the lab's views.
https://jupyter.org/enhancement-proposals/91-kernel-subshells/kernel-subshells.html says what subshells are.

ipykernel has no public call for this: where its parts are not as expected, all stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOKUPS = ("kernel_info_request", "comm_info_request")
_STATES = "jupyter.widget.control"  # the target of comms on which a page asks for the states of all widgets
_WAIT_SECONDS = 5.0  # for the thread that receives the kernel's messages


class Subshell:
    """Answers a kernel's lookups, on a thread that no cell blocks. A kernel has at most one: ``of`` it."""

    def __init__(self, kernel: Any):
        """Answer from now on; call it on the thread of the kernel's shell channel."""
        self._kernel = kernel
        self._manager = kernel.shell_channel_thread.manager
        self._asked: set[str] = set()  # ids of comms with the target _STATES
        self.id: str = self._manager._create_subshell()
        kernel.shell_stream.on_recv(self._receive, copy=False)

    @classmethod
    def of(cls, kernel: Any) -> Subshell | None:
        """The kernel's, which the first call makes; None where it cannot have one."""
        if getattr(kernel, "shell_channel_thread", None) is None:
            return None
        if not hasattr(kernel, "_txlab_subshell"):
            try:
                kernel._txlab_subshell = _on_shell_channel(kernel, lambda: cls(kernel))
            except Exception:
                kernel._txlab_subshell = None
                logger.warning("A page that is opened while a cell runs is answered when it ends", exc_info=True)
        return kernel._txlab_subshell

    async def _receive(self, message: list[Any]) -> None:
        lookup = self._as_lookup(message)
        if lookup is None:
            await self._kernel.shell_channel_thread_main(message)
        else:
            self._manager.get_shell_channel_to_subshell_socket(self.id).send_multipart(lookup)

    def _as_lookup(self, message: list[Any]) -> list[bytes] | None:
        """The message, addressed to this subshell, if it is a lookup that is addressed to none."""
        session = self._kernel.session
        try:
            idents, parts = session.feed_identities(message, copy=False)
            peeked = session.deserialize(parts, content=False, copy=False)
            header, content = peeked["header"], session.unpack(peeked["content"])
            kind = header["msg_type"]
            if header.get("subshell_id") or not (kind in _LOOKUPS or self._asks_for_states(kind, content)):
                return None
            return session.serialize(peeked | {"header": header | {"subshell_id": self.id}}, idents)
        except Exception:
            return None  # the kernel says what is wrong with it

    def _asks_for_states(self, kind: str, content: dict[str, Any]) -> bool:
        if kind == "comm_open" and content["target_name"] == _STATES:
            self._asked.add(content["comm_id"])
        return kind.startswith("comm_") and content["comm_id"] in self._asked


def answer_while_cells_run(comm: Any) -> None:
    """Handle what pages send on ``comm`` on the subshell that they name, else on the lab's own.

    Since 7.4, ipykernel does so on the thread that last sent something on the comm instead: from threads that have no
    subshell of their own this is the main one, which a cell may block.
    """
    from IPython import get_ipython

    ours = Subshell.of(getattr(get_ipython(), "kernel", None))
    comm._reply_subshell_for = lambda _, named: named or (ours and ours.id)


def _on_shell_channel(kernel: Any, make: Callable[[], T]) -> T:
    made: Future[T] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except Exception as error:
            made.set_exception(error)

    kernel.shell_channel_thread.io_loop.add_callback(run)
    return made.result(_WAIT_SECONDS)
