"""A line below a cell that failed for a reason for which the lab has a remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

from txlab.notebook.loops import running_kernel

NESTED = (  # how asyncio says that a loop is running already
    "asyncio.run() cannot be called from a running event loop",
    "Runner.run() cannot be called from a running event loop",
    "This event loop is already running",
)
REMEDY = (
    "txlab: the loop of a kernel is always running. `await main()` works in a cell; "
    "after `txlab.allow_asyncio_run()`, `asyncio.run(main())` does too."
)


def register(shell: InteractiveShell) -> None:
    """Look at what the cells of ``shell`` come to; a second call does nothing."""
    unregister(shell)
    shell.events.register("post_run_cell", _hint)


def unregister(shell: InteractiveShell) -> None:
    """Look no more."""
    if _hint in shell.events.callbacks["post_run_cell"]:
        shell.events.unregister("post_run_cell", _hint)


def _hint(result: ExecutionResult) -> None:
    found = any(isinstance(error, RuntimeError) and str(error) in NESTED for error in _chain(result.error_in_exec))
    if found and running_kernel() is not None:
        print(REMEDY, file=sys.stderr)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
