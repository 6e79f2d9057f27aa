"""The lab's magics: they parse a line and call ``Lab``."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, Status, serve


@magics_class
class LabMagics(Magics):
    """``%txserve``, ``%txstatus``, ``%txstop``, ``%txlogs``, ``%txprofile``."""

    @magic_arguments()
    @argument("model", nargs="?", help="Hugging Face name or local folder (default: SmolLM2-135M-Instruct)")
    @argument("--port", type=int, default=0, help="port to serve on; 0 is any free one")
    @argument("--api-key", help="key that clients must send (default: a random one)")
    @argument("--loop", default="auto", choices=("auto", "control", "main", "thread"), help="loop that serves")
    @argument("--restart", action="store_true", help="stop a running lab first")
    @line_magic
    def txserve(self, line: str) -> Lab:
        """Serve a base model from this kernel and point the Tinker SDK to it; returns the lab.

        ``lab = %txserve`` may run any number of times: the lab that runs already is returned.
        """
        args = _parse(self.txserve, line)
        return serve(_unquoted(args.model), port=args.port, api_key=args.api_key, loop=args.loop, restart=args.restart)

    @line_magic
    def txstatus(self, line: str) -> Status:
        """What runs and what it does: the server, and a row per adapter."""
        return _running().status()

    @line_magic
    def txstop(self, line: str) -> None:
        """Stop the server; free its port and the device memory."""
        if Lab.current is not None:
            Lab.current.stop()

    @magic_arguments()
    @argument("-n", "--lines", type=int, default=50, help="how many lines (default: 50)")
    @line_magic
    def txlogs(self, line: str) -> None:
        """Print the server's latest log lines."""
        lines = _parse(self.txlogs, line).lines
        print(_running().logs(lines))

    @magic_arguments()
    @argument("--rows", type=int, default=8, help="sequences in the step (default: 8)")
    @argument("--length", type=int, default=128, help="tokens of each (default: 128)")
    @argument("--rank", type=int, default=32, help="rank of the adapter (default: 32)")
    @argument("--keep", metavar="FOLDER", help="keep the trace there, for Perfetto or XProf")
    @line_magic
    def txprofile(self, line: str) -> None:
        """Take a training step on random tokens apart, and print where its time goes."""
        args = _parse(self.txprofile, line)
        print(_running().profile(args.rows, args.length, args.rank, _unquoted(args.keep)))


def _parse(magic: Callable[..., Any], line: str) -> Namespace:
    """The arguments of a magic. A wrong one raises TxlabError: IPython's own UsageError does not fail a cell."""
    try:
        return parse_argstring(magic, line)
    except UsageError as error:
        raise TxlabError(f"{error} (%{magic.__name__}? shows what there is)") from None


def _unquoted(word: str | None) -> str | None:
    """A word of a magic's line, whose quotes IPython keeps."""
    return shlex.split(word)[0] if word else None


def _running() -> Lab:
    if Lab.current is None:
        raise TxlabError("No lab runs in this kernel. Start one with %txserve.")
    return Lab.current
