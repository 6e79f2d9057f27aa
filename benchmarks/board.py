"""What a live board costs: training without one, with one, with one and without, in one process.

Prints a JSON line for each repetition as it comes and one for each number of adapters on the board, then a table.
benchmarks/README.md says how each figure is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from statistics import median
from typing import Any
from unittest import mock

from benchmarks import command_line
from benchmarks.command_line import emit, positive, say
from benchmarks.measure import numpy_matmul_gflops, table
from benchmarks.mixed_measure import WORK, Subject, training
from benchmarks.report import Record, bound, whole
from txlab.config import EngineSettings, ModelSettings
from txlab.engine.bus import EventBus
from txlab.engine.events import AdapterCreated, PassCompleted, StepCompleted
from txlab.lora.state import LoraConfig
from txlab.models.base import BaseModel, load_base
from txlab.notebook.board import Board

STEPS = 1000  # that each idle adapter on the board has behind it
LEAST = 0.98  # of the speed without a board


# ----------------------------------------------------------------------------- a page that nobody sees


class Wire:
    """Stands for a kernel's connection to a page: packs what is sent as JSON, as a kernel does, and counts it."""

    def __init__(self) -> None:
        self.messages = self.bytes = 0

    def send(self, content: Any) -> None:
        """Pack a message and forget it."""
        self.messages += 1
        self.bytes += len(json.dumps(content).encode())


class Display:
    """Stands for the handle of a display."""

    def __init__(self, wire: Wire):
        self._wire = wire

    def update(self, bundle: dict[str, str], **_: Any) -> None:
        """Send a picture."""
        self._wire.send(bundle)


@contextmanager
def page(wire: Wire) -> Iterator[None]:
    """While open, widgets and displays that are made here send to ``wire``."""
    from comm.base_comm import BaseComm

    class Comm(BaseComm):
        def publish_msg(self, msg_type: str, data: Any = None, **_: Any) -> None:
            wire.send({"type": msg_type, "data": data})

    with (
        mock.patch("comm.create_comm", Comm),
        mock.patch("IPython.display.display", return_value=Display(wire)),
        mock.patch("txlab.notebook.board.running_kernel", object),
    ):
        yield


class TimedBoard(Board):
    """A board that counts how often it draws, and the processor seconds that this takes."""

    draws, drawing = 0, 0.0

    def _draw(self, quiet: bool) -> float:
        began = time.thread_time()
        try:
            return super()._draw(quiet)
        finally:
            self.draws += 1
            self.drawing += time.thread_time() - began


@contextmanager
def live_board(bus: EventBus, wire: Wire) -> Iterator[TimedBoard]:
    """A board that a page looks at all the time."""
    board = TimedBoard(bus, lambda tokens: " ".join(map(str, tokens)), "a base model", "http://127.0.0.1")
    with page(wire):
        board.show()
    board._panel._receive(None, {"hello": "benchmark"}, [])  # as panel.js does
    try:
        yield board
    finally:
        board.close()


# ------------------------------------------------------------------------------------- measuring


class Crowd(Subject):
    """An engine with one adapter that trains, and a bus that knows of ``adapters`` in all."""

    def __init__(self, base: BaseModel, adapters: int):
        super().__init__(base, EngineSettings().sample_share)
        self.adapters = adapters
        self.bus: EventBus = self._bus
        for number in range(1, adapters):
            self._pretend(f"idle-{number}")

    def _pretend(self, name: str) -> None:
        """An adapter that has trained for some time, and is idle now."""
        self.bus.publish(AdapterCreated(name, name, LoraConfig(WORK.ranks[0]), 0))
        for step in range(1, STEPS + 1):
            loss = 1000 / step + step * len(name) % 7
            self.bus.publish(PassCompleted(name, loss, 1.0, WORK.tokens, 1.0, backward=True))
            self.bus.publish(StepCompleted(name, step, 1e-4, loss, 0))


@dataclass(frozen=True, slots=True)
class Spell:
    """Some rounds of training on end."""

    seconds: tuple[float, ...]  # of each
    processor_seconds: float  # of the whole process, in all


@dataclass(frozen=True, slots=True)
class Part:
    """One repetition: a spell without a board, two with one, and another without."""

    without: tuple[Spell, Spell]
    with_board: tuple[Spell, Spell]
    draws_per_s: float
    drawing: float  # processor seconds of drawing and sending in a second
    bytes_per_s: float
    gflops: float  # of NumPy's matmul


def measure(subject: Crowd, rounds: int) -> Part:
    """Train in turn, so that a machine that grows slower or faster favours neither side."""
    gflops = numpy_matmul_gflops()
    with closing(training(subject)) as ends:
        first = spell(ends, rounds)
        wire = Wire()
        with live_board(subject.bus, wire) as board:
            next(ends)  # the round in which the board appears
            began, draws, drawing, sent = time.perf_counter(), board.draws, board.drawing, wire.bytes
            boards = spell(ends, rounds), spell(ends, rounds)
            lasted = time.perf_counter() - began
            figures = (board.draws - draws, board.drawing - drawing, wire.bytes - sent)
        next(ends)
        last = spell(ends, rounds)
    draws_per_s, share, bytes_per_s = (figure / lasted for figure in figures)
    return Part((first, last), boards, draws_per_s, share, bytes_per_s, gflops)


def spell(ends: Iterator[float], rounds: int) -> Spell:
    """Train some rounds, from the end of one on."""
    at = [next(ends)]
    before = os.times()
    at += islice(ends, rounds)
    after = os.times()
    seconds = tuple(end - begin for begin, end in pairwise(at))
    return Spell(seconds, after.user + after.system - before.user - before.system)


def record(adapters: int, parts: Sequence[Part]) -> Record:
    """Figures for one number of adapters; ratios are of speeds with a board to those without."""
    without, with_board = (seconds([getattr(part, side) for part in parts]) for side in ("without", "with_board"))
    processor = [
        sum(one.processor_seconds for part in parts for one in getattr(part, side))
        for side in ("without", "with_board")
    ]
    return {
        "adapters": adapters,
        "tokens_per_s": WORK.tokens / median(without),
        "board_tokens_per_s": WORK.tokens / median(with_board),
        "ratio": median(without) / median(with_board),
        "fastest_ratio": min(without) / min(with_board),
        "processor_ratio": processor[0] / processor[1],
        "goal": LEAST,
        "draws_per_s": median(part.draws_per_s for part in parts),
        "drawing": median(part.drawing for part in parts),
        "bytes_per_s": median(part.bytes_per_s for part in parts),
        "matmul_gflops": [part.gflops for part in parts],
    }


def seconds(sides: Sequence[tuple[Spell, Spell]]) -> list[float]:
    """Of all rounds of one side."""
    return [second for spells in sides for one in spells for second in one.seconds]


def as_table(lines: Sequence[Record]) -> str:
    """Records as text."""
    header = (
        "adapters",
        "tok/s",
        "with a board",
        "ratio",
        "of fastest",
        "of processor",
        "goal",
        "draws/s",
        "drawing %",
        "kB/s",
    )
    return table(header, [cells(line) for line in lines])


def cells(line: Record) -> tuple[str | float | None, ...]:
    """Cells of one row."""
    return (
        str(line["adapters"]),
        *(whole(line[name]) for name in ("tokens_per_s", "board_tokens_per_s")),
        line["ratio"],
        line["fastest_ratio"],
        line["processor_ratio"],
        bound("≥", line["goal"]),
        line["draws_per_s"],
        100 * line["drawing"],
        line["bytes_per_s"] / 1000,
    )


# ----------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all in turn, and print."""
    args = parse(arguments)
    base = load_base(ModelSettings(name=args.model, dtype=args.dtype))
    with ExitStack() as stack:
        subjects = [Crowd(base, adapters) for adapters in args.adapters]
        for subject in subjects:
            stack.callback(subject.stop)
            say(f"{subject.adapters} adapters: warming up")
            measure(subject, rounds=2)
        parts: dict[Crowd, list[Part]] = {subject: [] for subject in subjects}
        for _ in range(args.repeat):
            for subject, own in parts.items():
                own.append(measure(subject, args.rounds))
                emit({"adapters": subject.adapters, "repetition": asdict(own[-1])})
    lines = [emit(record(subject.adapters, own)) for subject, own in parts.items()]
    print(f"\n{as_table(lines)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_line.parser("benchmarks.board", __doc__, "repetitions")
    parser.add_argument(
        "--adapters", nargs="+", type=positive, default=[1, 64], metavar="N", help="on the board (default: 1 64)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=10, metavar="N", help="of training that are timed (default: %(default)s)"
    )
    return command_line.parse(parser, arguments)


if __name__ == "__main__":
    main()
