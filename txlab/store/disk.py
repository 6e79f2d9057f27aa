"""Files and folders that are on the disk for good when a function returns."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def replace_json(file: Path, record: Mapping[str, Any]) -> None:
    """Put ``record`` in the place of ``file`` in one step that survives a crash."""
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(record, indent=1), encoding="utf-8")
    sync(draft)
    os.replace(draft, file)
    sync(file.parent)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, each entered in its parent's directory for good."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        sync(created.parent)


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk; folders only where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_files(folder: Path, keep: Collection[str]) -> None:
    """Remove the files of ``folder`` but the ones named ``keep``.

    What cannot be removed now stays for another time: Windows keeps what a reader holds open.
    """
    with suppress(FileNotFoundError):
        for file in folder.iterdir():
            if file.name not in keep:
                with suppress(OSError):
                    file.unlink()


def remove_empty(folder: Path, root: Path) -> None:
    """Remove ``folder`` and its parents below ``root``, as far as they are empty."""
    with suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent
