"""Memory that is freed between training steps."""

from __future__ import annotations

import ctypes
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from txlab.engine.host_memory import HUGE_PAGE, keep_freed_memory, release_freed_memory, spans, use_huge_pages

MB = 1 << 20

# In a process of its own: what it asks of the C library holds for all of it.
SCRIPT = """
import json, resource
from txlab.engine.host_memory import keep_freed_memory, release_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def take_and_free():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        bytearray(b"x") * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = {"start": resident(), "faults given back": take_and_free(), "given back": resident()}
keep_freed_memory()
take_and_free()
found |= {"faults kept": take_and_free(), "kept": resident()}
release_freed_memory()
found["released"] = resident()
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_what_is_freed_stays_until_it_is_released():
    run = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    found = json.loads(run.stdout)
    assert found["given back"] < found["start"] + 8 * MB, "what happens otherwise"
    assert found["kept"] > found["start"] + 60 * MB
    assert found["faults kept"] < 10, "no page is new"
    assert found["faults given back"] > 10
    assert found["released"] < found["start"] + 8 * MB


def test_another_c_library_is_left_alone(monkeypatch):
    def missing(name: str):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_freed_memory()
    release_freed_memory()
    use_huge_pages([jnp.ones(HUGE_PAGE)])


def test_huge_pages_are_those_within_arrays_that_lie_together():
    page = HUGE_PAGE
    assert spans([(page + 1, page), (3 * page, page)]) == [(2 * page, 4 * page)], "what lies between is little"
    assert spans([(5 * page, page), (page, page)]) == [(page, 2 * page), (5 * page, 6 * page)]
    assert spans([(page + 1, page - 1)]) == []
    assert spans([]) == []


# Also in a process of its own: others have advised the kernel on memory that is used again.
HUGE_SCRIPT = """
import json
import jax.numpy as jnp
from txlab.engine.host_memory import use_huge_pages

def huge():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("AnonHugePages"))

arrays = [jnp.full(2 << 20, value, jnp.float32) for value in range(4)]
before = huge()
use_huge_pages(arrays)
print(json.dumps({"more": huge() - before, "sums": [float(array.sum()) for array in arrays]}))
"""


def collapses() -> bool:
    """Whether this is a Linux that replaces pages at once, and has huge ones."""
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    new = found is not None and (int(found[1]), int(found[2])) >= (6, 1)
    return sys.platform == "linux" and new and switch.exists() and "[never]" not in switch.read_text()


@pytest.mark.skipif(not collapses(), reason="is about Linux with huge pages")
def test_arrays_lie_on_huge_pages_with_all_that_is_in_them():
    run = subprocess.run([sys.executable, "-c", HUGE_SCRIPT], check=True, capture_output=True, text=True)
    found = json.loads(run.stdout)
    assert found["more"] >= 4 * 3 * HUGE_PAGE, "of four arrays of 8 MiB"
    assert found["sums"] == [value * float(2 << 20) for value in range(4)]
