"""Host memory between training steps, where the device is the host."""

from __future__ import annotations

import ctypes
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3), as <malloc.h> numbers them
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, from now on and for this whole process.

    A step frees and takes hundreds of megabytes. Given back to the system in between, they come as new pages, which
    the kernel has to zero: a fifth of a step on two cores. Does nothing where the C library is not glibc.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_MMAP_THRESHOLD, _MOST)
        libc.mallopt(_TRIM_THRESHOLD, _MOST)


def release_freed_memory() -> None:
    """Give the system what is free at this moment."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
