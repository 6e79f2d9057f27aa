"""A jax.profiler trace as plain intervals: the traced span, and the device's operations in it.

On CPU an operation appears on the thread that launched it. Work that this thread hands to the pool does not appear by
itself: the operation is then *in flight* until its ``end:`` event, while the thread may run others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.profiler import ProfileData

from txlab.profiling.hlo import CONTROL_FLOW, Instruction, Programs, read_programs

SPAN = "txlab step"
_END = "end: "


@dataclass(frozen=True, slots=True)
class Op:
    """One execution of an HLO instruction; times in seconds."""

    module: str  # name of its program, such as jit_layer_forward
    program: int
    instruction: Instruction
    start: float
    stop: float  # its thread or stream did something else from here on
    end: float  # its result was there; stop or later


@dataclass(frozen=True, slots=True)
class Trace:
    """What ran while the span lasted; times in seconds."""

    start: float
    end: float
    ops: Sequence[Op]  # without loops, conditionals and calls, whose parts are there


@dataclass(frozen=True, slots=True)
class _Event:
    module: str
    program: int
    name: str
    start: float
    stop: float
    end: float


@contextmanager
def traced_span(folder: Path) -> Iterator[None]:
    """Trace what runs inside into ``folder``. RuntimeError where this process is being traced already."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # frames of Python would slow down what is measured
    with jax.profiler.trace(str(folder), profiler_options=options), jax.profiler.TraceAnnotation(SPAN):
        yield


def read_trace(folder: Path) -> Trace:
    """The newest trace in ``folder``, as ``traced_span`` left it. FileNotFoundError where there is none."""
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{folder} holds no trace (*.xplane.pb)")
    xspace = files[-1].read_bytes()
    profile = ProfileData.from_serialized_xspace(xspace)
    start, end = _span(profile)
    events = [event for event in _events(profile) if event.end > start and event.start < end]
    return Trace(start, end, _ops(events, read_programs(xspace)))


def _span(profile: ProfileData) -> tuple[float, float]:
    events = (event for plane in profile.planes for line in plane.lines for event in line.events)
    step = next(event for event in events if event.name == SPAN)
    return step.start_ns * 1e-9, step.end_ns * 1e-9


def _events(profile: ProfileData) -> list[_Event]:
    """Executions of HLO instructions: those of devices where a device has its own plane, else of host threads."""
    by_plane = {plane.name: list(_plane_events(plane)) for plane in profile.planes}
    of_devices = [event for name, events in by_plane.items() if name.startswith("/device:") for event in events]
    return of_devices or [event for events in by_plane.values() for event in events]


def _plane_events(plane) -> Iterator[_Event]:
    traced = [(event, dict(event.stats)) for line in plane.lines for event in line.events]
    ends = {(e.name.removeprefix(_END), stats["_c"]): e.start_ns for e, stats in traced if e.name.startswith(_END)}
    for event, stats in traced:
        if "hlo_op" in stats:
            end = max(event.end_ns, ends.get((event.name, stats.get("_p")), 0.0))
            times = (event.start_ns * 1e-9, event.end_ns * 1e-9, end * 1e-9)
            yield _Event(str(stats.get("hlo_module", "")), int(stats.get("program_id", -1)), stats["hlo_op"], *times)


def _ops(events: Sequence[_Event], programs: Programs) -> list[Op]:
    by_program: dict[tuple[str, int], list[_Event]] = defaultdict(list)
    for event in events:
        by_program[event.module, event.program].append(event)
    ops = []
    for (module, program), own in by_program.items():
        known = programs.find(program, module, {event.name for event in own})
        for event in own:
            instruction = known.get(event.name) or Instruction(event.name, _opcode_of(event.name))
            if instruction.opcode not in CONTROL_FLOW:
                ops.append(Op(module, program, instruction, event.start, event.stop, event.end))
    return ops


def _opcode_of(name: str) -> str:
    """XLA names an instruction after its opcode, with a number behind a dot."""
    return name.split(".")[0]
