"""txlab: learn and do LLM fine-tuning inside the notebook.

``lab = txlab.serve()`` or, in a notebook, ``%load_ext txlab`` and ``lab = %txserve``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from txlab.config import Settings
    from txlab.engine.user_losses import LossError
    from txlab.notebook.errors import TxlabError
    from txlab.notebook.lab import Lab, serve
    from txlab.notebook.loops import allow_asyncio_run

__all__ = ["Lab", "LossError", "Settings", "TxlabError", "allow_asyncio_run", "serve"]

_HOMES = {
    "Lab": "txlab.notebook.lab",
    "LossError": "txlab.engine.user_losses",
    "Settings": "txlab.config",
    "TxlabError": "txlab.notebook.errors",
    "allow_asyncio_run": "txlab.notebook.loops",
    "serve": "txlab.notebook.lab",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import txlab`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'txlab' has no attribute {name!r}")
    from txlab.notebook.imports import whole_imports

    with whole_imports():
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext txlab``: register the magics, their completion, the faces of the SDK's objects, and hints."""
    from txlab.notebook.imports import whole_imports

    with whole_imports():
        from txlab.notebook import completion, formatters, hints, interrupted_cells
        from txlab.notebook.magics import LabMagics

        shell.register_magics(LabMagics)
        completion.install(shell)
        formatters.register(shell)
        hints.register(shell)
        interrupted_cells.install(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """``%unload_ext txlab``: remove what was registered. A lab that runs goes on, and the next load finds it."""
    from txlab.notebook import completion, formatters, hints, interrupted_cells
    from txlab.notebook.magics import LabMagics

    completion.uninstall(shell)
    formatters.unregister(shell)
    hints.unregister(shell)
    interrupted_cells.uninstall(shell)
    for kind, names in LabMagics.magics.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
