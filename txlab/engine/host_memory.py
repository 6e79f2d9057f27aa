"""Host memory where the device is the host: what is freed between training steps, and the pages of weights."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import jax

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3), as <malloc.h> numbers them
_MOST = 2**31 - 1
_HUGEPAGE, _COLLAPSE = 14, 25  # of madvise(2)
HUGE_PAGE = 2 << 20


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


def use_huge_pages(arrays: Iterable[jax.Array]) -> None:
    """Have Linux back arrays on the host with pages of 2 MiB, so that reading them takes few address translations.

    A decode step reads all weights: a tenth less time for one row. The pages are replaced at once (Linux 6.1) or when
    the kernel gets to it; what is in them stays. Does nothing elsewhere.
    """
    if (libc := _glibc()) is None:
        return
    parts = [shard.data for array in arrays for shard in array.addressable_shards]
    for start, end in spans((part.unsafe_buffer_pointer(), part.nbytes) for part in parts):
        first, size = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
        libc.madvise(first, size, _HUGEPAGE)
        libc.madvise(first, size, _COLLAPSE)


def spans(blocks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where the huge pages lie that fit into blocks (address, bytes) and gaps between them of less than one."""
    joined: list[tuple[int, int]] = []
    for start, size in sorted(blocks):
        near = bool(joined) and start - joined[-1][1] < HUGE_PAGE
        joined.append((joined.pop()[0] if near else start, start + size))
    rounded = ((-(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE) for start, end in joined)
    return [(start, end) for start, end in rounded if start < end]


def _glibc() -> Any:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
