"""Progress bars of downloads and loads."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress(total: int, title: str, unit: str) -> tqdm:
    """A bar that vanishes at its end; unit "B" counts bytes.

    Plain text, since a widget is a broken one in the saved notebook; there on stdout, since Jupyter paints stderr red.
    """
    file = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    return tqdm(total=total, desc=title, unit=unit, unit_scale=unit == "B", leave=False, file=file)
