"""Folders that are written to, tried before anything depends on them."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)


def why_not_writable(folder: Path) -> str | None:
    """Make ``folder`` and try to write there: None where that works, else what stands in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def usable_cache(folder: Path) -> Path:
    """``folder``; where it cannot be written one that ends with this process, and the log says so."""
    problem = why_not_writable(folder)
    if problem is None:
        return folder
    logger.warning("The cache %s cannot be written (%s): nothing is kept. TXLAB_CACHE names another.", folder, problem)
    return _scratch()


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="txlab-"))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    """At the exit of the process that made it; forked children leave it alone."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
