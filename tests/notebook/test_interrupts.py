"""Interrupts that wait: the handler, and starts that are interrupted at every stage in kernels of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.conftest import free_port
from tests.notebook.kernels import open_kernel
from tests.notebook.test_extension import TRAIN
from txlab.notebook.interrupts import interrupts_held


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler, "it was not put back"


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_the_end_and_is_raised_once(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def work() -> None:
        with interrupts_held(lambda: "wait"):
            interrupt()
            interrupt()
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]
    assert capsys.readouterr().out == "wait\n", "told once"


def test_an_interrupt_is_raised_at_the_next_clean_point() -> None:
    done = []

    def work() -> None:
        with interrupts_held(lambda: "wait") as interrupts:
            interrupts.check()
            interrupt()
            done.append("before")
            interrupts.check()
            done.append("after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["before"]


def test_an_interrupt_that_waits_is_raised_where_it_is_allowed() -> None:
    def work() -> None:
        with interrupts_held(lambda: "wait") as interrupts:
            interrupt()
            with interrupts.allowed():
                pytest.fail("it was allowed")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_a_second_interrupt_does_not_cut_what_the_first_one_undoes() -> None:
    undone = []

    def work() -> None:
        with interrupts_held(lambda: "wait") as interrupts:
            try:
                with interrupts.allowed():
                    try:
                        interrupt()
                    finally:
                        interrupt()
                        undone.append("inner")
            finally:
                interrupt()
                undone.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert undone == ["inner", "outer"]


def test_an_error_wins_over_an_interrupt() -> None:
    def work() -> None:
        with interrupts_held(lambda: "wait"):
            interrupt()
            raise LookupError

    with pytest.raises(LookupError):
        work()


def test_one_inside_of_another_is_the_same() -> None:
    def work() -> None:
        with interrupts_held(lambda: "wait") as outer, interrupts_held(lambda: "other") as inner:
            assert inner is outer
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        work()


def test_ignored_interrupts_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held(lambda: "wait"):
        interrupt()
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN


def test_another_thread_may_hold_nothing() -> None:
    seen: list[object] = []

    def hold() -> None:
        with interrupts_held(lambda: "wait"):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


LAZY = """
import sys
from contextlib import contextmanager
from txlab.notebook.interrupts import Interrupts
allowed, late = Interrupts.allowed, set()

@contextmanager
def watched(self):
    before = set(sys.modules)
    with allowed(self):
        yield
    late.update(set(sys.modules) - before)

Interrupts.allowed = watched
import txlab
lab = txlab.serve(sys.argv[1])
print(sorted(late))
"""


def test_nothing_is_imported_where_an_interrupt_may_be_raised(tiny_llama: Path, lab_env: dict[str, str]) -> None:
    command = [sys.executable, "-c", LAZY, str(tiny_llama)]
    done = subprocess.run(command, env=lab_env, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


# Interrupts the kernel once, at the first event that ``reached`` says yes to: an audit event, or a progress bar's.
TRIGGER = """
import os, signal, sys
from tqdm import tqdm
def interrupt_when(reached):
    pending = [reached]
    def see(event, *args):
        if pending and reached(event, *args):
            pending.clear()
            os.kill(os.getpid(), signal.SIGINT)
    sys.addaudithook(lambda event, args: see(event, *args))
    update = tqdm.update
    tqdm.update = lambda bar, n=1: (see("progress", bar.desc), update(bar, n))[1]
"""
MOMENTS = {
    "numpy of %load_ext": "event == 'import' and args[0] == 'numpy._core.numeric'",
    "jax": "event == 'import' and args[0] == 'jax._src.core'",
    "flax": "event == 'import' and args[0] == 'flax.nnx.module'",
    "transformers": "event == 'import' and args[0] == 'transformers.utils.generic'",
    "fastapi": "event == 'import' and args[0] == 'fastapi.routing'",
    "the records": "event == 'sqlite3.connect'",
    "the tokenizer": "event == 'open' and str(args[0]).endswith('tokenizer.json')",
    "the weights": "event == 'progress' and 'Loading weights' in args[0]",
}
CLEAN = """
import logging, threading
assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("txlab")]
assert not logging.getLogger("txlab").handlers and logging.getLogger("txlab").propagate
assert "TINKER_BASE_URL" not in os.environ
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_start_can_be_repeated(moment: str, tiny_llama: Path, lab_env: dict[str, str]) -> None:
    serve = f"%load_ext txlab\nlab = %txserve {tiny_llama} --port {free_port()}"
    with open_kernel(lab_env) as kernel:
        kernel.ok(f"{TRIGGER}\ninterrupt_when(lambda event, *args: {MOMENTS[moment]})")
        interrupted = kernel.run(serve)
        assert interrupted.error_name == "KeyboardInterrupt", interrupted.text + interrupted.error
        kernel.ok(CLEAN)
        assert "txlab serves" in kernel.ok(serve).text
        assert "loss" in kernel.ok(TRAIN).text
