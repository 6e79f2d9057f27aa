"""Text on its way to a client: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from txlab.models.detokenizer import Detokenizer


class TextStream:
    """The text of one sequence, given out piece by piece.

    What may be the beginning of a stop string waits for what follows it, as half a character waits in ``text``.
    """

    def __init__(self, text: Detokenizer, stops: Sequence[str] = ()):
        self._text = text
        self._stops = tuple(stops)
        self._held = ""
        self.length = 0  # characters given out
        self.stopped = False  # at a stop string, which is dropped with all that follows

    @property
    def starts(self) -> list[int]:
        """For each token whose place is certain: characters of the text before it."""
        return self._text.starts

    def swallowed(self, index: int) -> str:
        """Spaces of a token that the beginning of the text swallowed."""
        return self._text.swallowed.get(index, "")

    def feed(self, tokens: Iterable[int]) -> str:
        """Take more tokens; return the text that is certain now."""
        return "".join(self._take(self._text.feed(token)) for token in tokens)

    def finish(self) -> str:
        """Return what was held back: the sequence has ended."""
        return self._take(self._text.finish()) + self._release(len(self._held))

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if not found:
            return self._release(len(self._held) - self._begun())
        self.stopped = True
        certain = self._release(min(found))
        self._held = ""
        return certain

    def _begun(self) -> int:
        """Length of the longest beginning of a stop string that the held text ends with."""
        lengths = ((stop, n) for stop in self._stops for n in range(1, min(len(stop), len(self._held) + 1)))
        return max((n for stop, n in lengths if self._held.endswith(stop[:n])), default=0)

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self.length += len(text)
        return text
