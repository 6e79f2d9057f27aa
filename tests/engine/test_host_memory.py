"""Memory that is freed between training steps."""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys

import pytest

from txlab.engine.host_memory import keep_freed_memory, release_freed_memory

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
