"""Everything that a lab imports, at once and whole: an import that is cut short breaks all later ones of its module."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from txlab.notebook.interrupts import Interrupts, interrupts_held

MODULES = (  # what a start and the first requests would import bit by bit
    "txlab.models.base",
    "txlab.engine.engine",
    "txlab.server.app",
    "txlab.store.store",
    "sqlalchemy.dialects.sqlite",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.auto",
    "jax.experimental.multihost_utils",
    "jupyter_core.paths",
    "multiprocessing.synchronize",  # of progress bars
    "anywidget",
    "tinker",
)
OPTIONAL = ("hf_xet",)  # downloads from the hub
EXPECTED = {"torch": 1700, "txlab": 2900}  # modules that are there afterwards; transformers brings torch where it is


def import_everything() -> None:
    """Import what a lab needs."""
    for name in (*MODULES, *(name for name in OPTIONAL if find_spec(name))):
        import_module(name)


@contextmanager
def whole_imports() -> Iterator[Interrupts]:
    """While open, interrupts wait; whoever interrupts is told for about how long."""
    with interrupts_held(_notice()) as interrupts:
        yield interrupts


def _notice() -> Callable[[], str]:
    started, had = time.monotonic(), len(sys.modules)

    def notice() -> str:
        return f"Interrupted: finishing imports{_remaining(time.monotonic() - started, len(sys.modules) - had, had)}."

    return notice


def _remaining(seconds: float, imported: int, had: int) -> str:
    """The time that is left, as far as the modules that are there by now tell it."""
    missing = sum(count for name, count in EXPECTED.items() if find_spec(name)) - had - imported
    return f", about {max(1, round(seconds / imported * missing))} s" if imported > 0 and missing > 0 else ""
