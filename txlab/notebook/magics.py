"""The lab's magics: they parse a line and call ``Lab``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args, overload

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from txlab.engine.bus import LOSS
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, Status, serve
from txlab.notebook.logs import Logs
from txlab.notebook.manual import Manual, example
from txlab.notebook.samples import Samples
from txlab.notebook.stopped import free_port
from txlab.notebook.texts import Text
from txlab.notebook.views.frame import LOG_CHOICES, MAX_SMOOTHING, XKind

if TYPE_CHECKING:
    from txlab.notebook.board import Board
    from txlab.notebook.playground import Playground


@magics_class
class LabMagics(Magics):
    """The magics of the lab; ``%txhelp`` lists them."""

    @magic_arguments()
    @argument("model", nargs="?", help="Hugging Face name or local folder (default: SmolLM2-135M-Instruct)")
    @argument("--port", type=int, default=0, help="port to serve on; 0 is any free one")
    @argument("--api-key", help="key that clients must send (default: $TXLAB_API_KEY, else a random one)")
    @argument("--loop", default="auto", choices=("auto", "control", "main", "thread"), help="loop that serves")
    @argument("--restart", action="store_true", help="replace a running lab; its port and key stay unless given")
    @example("lab = %txserve Qwen/Qwen3-0.6B")
    @line_magic
    def txserve(self, line: str) -> Lab:
        """Serve a base model from this kernel and point the Tinker SDK to it; returns the lab.

        ``lab = %txserve`` may run any number of times: the lab that runs already is returned.
        """
        args = _parse(self.txserve, line)
        return serve(_unquoted(args.model), port=args.port, api_key=args.api_key, loop=args.loop, restart=args.restart)

    @magic_arguments()
    @argument("--free-port", action="store_true", help="do not keep the port to tell old clients; now, or afterwards")
    @example("%txstop")
    @line_magic
    def txstop(self, line: str) -> Lab | None:
        """Stop the server and free the device memory; says what becomes of clients. Returns the lab that ran."""
        args = _parse(self.txstop, line)
        lab = Lab.current
        if lab is not None:
            print(lab.stop(keep_port=not args.free_port))
        if args.free_port:
            free_port()
        return lab

    @magic_arguments()
    @example("%txstatus")
    @line_magic
    def txstatus(self, line: str) -> Status:
        """What runs and what it does: the server, and a row per adapter."""
        _parse(self.txstatus, line)
        return _running().status()

    @magic_arguments()
    @argument("-n", "--lines", type=int, default=50, help="how many lines (default: 50)")
    @example("%txlogs -n 20")
    @line_magic
    def txlogs(self, line: str) -> Logs:
        """The server's latest log lines."""
        lines = _parse(self.txlogs, line).lines
        return _running().logs(lines)

    @magic_arguments()
    @argument("metric", nargs="?", default=LOSS, help="curve that is shown, yours too (default: loss)")
    @argument("--x", default="step", choices=get_args(XKind), help="what it is over (default: step)")
    @argument("--smoothing", type=float, default=0.0, help=f"weight of the past, 0 to {MAX_SMOOTHING} (default: 0)")
    @argument("--scale", default="auto", choices=tuple(LOG_CHOICES), help="of its axis (default: where it shows more)")
    @argument("--logprobs", action="store_true", help="shade sampled tokens by how unlikely they were")
    @example("board = %txboard reward --x tokens --smoothing 0.6")
    @line_magic
    def txboard(self, line: str) -> Board:
        """Show the live board: adapters, their curves, and what they say."""
        args = _parse(self.txboard, line)
        metric = _unquoted(args.metric)
        return _running().board(metric, x=args.x, smoothing=args.smoothing, scale=args.scale, logprobs=args.logprobs)

    @magic_arguments()
    @example("%txplay")
    @line_magic
    def txplay(self, line: str) -> Playground:
        """Open the playground: one prompt, answered by several adapters side by side."""
        _parse(self.txplay, line)
        return _running().playground()

    @magic_arguments()
    @argument("--rows", type=int, default=8, help="sequences in the step (default: 8)")
    @argument("--length", type=int, default=128, help="tokens of each (default: 128)")
    @argument("--rank", type=int, default=32, help="rank of the adapter (default: 32)")
    @argument("--keep", metavar="FOLDER", help="keep the trace there, for Perfetto or XProf")
    @example("%txprofile --rows 4 --length 512")
    @line_magic
    def txprofile(self, line: str) -> Text:
        """Take a training step on random tokens apart, and tell where its time goes."""
        args = _parse(self.txprofile, line)
        return _running().profile(args.rows, args.length, args.rank, _unquoted(args.keep))

    @magic_arguments()
    @argument("magic", nargs="?", help="show the options of this one (default: a table of all)")
    @example("%txhelp txserve")
    @line_magic
    def txhelp(self, line: str) -> Manual | Text:
        """What the magics of the lab are for, each with an example."""
        name = _unquoted(_parse(self.txhelp, line).magic)
        manual = Manual.of(LabMagics)
        return manual if name is None else manual.page(name)

    @magic_arguments()
    @argument("adapter", nargs="?", help="its name or run id (default: the base model)")
    @argument("-n", "--samples", type=int, default=1, help="how many continuations (default: 1)")
    @argument("--chat", action="store_true", help="the cell is the user's turn of a conversation")
    @argument("-m", "--max-tokens", type=int, default=64, help="of each, at most (default: 64)")
    @argument("-t", "--temperature", type=float, default=1.0, help="0 is greedy (default: 1)")
    @argument("--top-k", type=int, default=-1, help="draw from so many likeliest tokens (default: all)")
    @argument("--top-p", type=float, default=1.0, help="draw from the likeliest of this probability (default: 1)")
    @argument("--seed", type=int, help="the same one gives the same texts")
    @argument("--stop", action="append", help="a text that ends a sample; may come several times")
    @example("%%txsample pirate -n 2 --chat")
    @cell_magic
    def txsample(self, line: str, cell: str) -> Samples:
        """Continue the text of the cell with an adapter as it is now, or with the base model."""
        args = _parse(self.txsample, line)
        return _running().sample(
            cell.removesuffix("\n"),
            _unquoted(args.adapter),
            samples=args.samples,
            chat=args.chat,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
            stop=args.stop and [_unquoted(stop) for stop in args.stop],
        )


def _parse(magic: Callable[..., Any], line: str) -> Namespace:
    """The arguments of a magic. A wrong one raises TxlabError: IPython's own UsageError does not fail a cell."""
    try:
        return parse_argstring(magic, line)
    except (UsageError, ValueError) as error:  # ValueError: a quote that is not closed
        raise TxlabError(f"{error} (%{magic.__name__}? shows what there is)") from None


@overload
def _unquoted(word: str) -> str: ...


@overload
def _unquoted(word: str | None) -> str | None: ...


def _unquoted(word: str | None) -> str | None:
    """A word of a magic's line, whose quotes IPython keeps."""
    if word is not None and len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        return word[1:-1]
    return word


def _running() -> Lab:
    if Lab.current is None:
        raise TxlabError("No lab runs in this kernel. Start one with %txserve.")
    return Lab.current
