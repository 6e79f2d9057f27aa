"""The one exception that users of the lab see for what they can fix."""

from __future__ import annotations


class TxlabError(RuntimeError):
    """Something that the user can put right; the message says how. A cell shows it without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints in place of a traceback."""
        return [f"{type(self).__name__}: {self}", *getattr(self, "__notes__", ())]


def shortly(value: object) -> str:
    """What was given, short enough for a sentence about it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
