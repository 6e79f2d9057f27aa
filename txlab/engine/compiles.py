"""XLA's compiler as the lab sees it: a cache on disk, and an event for each program."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import jax

from txlab.folders import why_not_writable

logger = logging.getLogger(__name__)

_COMPILED = "/jax/core/compile/backend_compile_duration"  # covers programs that the cache on disk had


def use_compile_cache(folder: Path | None) -> None:
    """Keep compiled programs in ``folder``, so that the next kernel starts warm; nowhere if it cannot be written."""
    if folder is None:
        return
    if problem := why_not_writable(folder):
        logger.warning(
            "Compiled programs are not kept: %s cannot be written (%s). TXLAB_CACHE names another.", folder, problem
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def watch_compiles(compiled: Callable[[str, float], None]) -> Callable[[], None]:
    """Call ``compiled(program, seconds)`` for each program from now on; returns what ends it."""

    def listener(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED:
            compiled(str(kwargs.get("fun_name", "program")), duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listener)
    return lambda: jax.monitoring.unregister_event_duration_listener(listener)
