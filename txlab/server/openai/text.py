"""From tokens to text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte that no piece has
_SPACE = "▁"  # and a space


class Vocabulary:
    """The bytes that each token stands for. A text is the bytes of its tokens, one after the other."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._alphabet = _byte_alphabet()
        self._byte_level = self._alphabet.keys() <= tokenizer.get_vocab().keys()
        self._special = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)

    def spoken(self, token: int) -> bytes:
        """Bytes that ``token`` adds to a text: none where it is a special token."""
        return b"" if token in self._special else self.written(token)

    def written(self, token: int) -> bytes:
        """Bytes of a token, special or not. An id that the tokenizer does not know, as of padding, has none."""
        word: str | None = self._tokenizer.convert_ids_to_tokens(token)  # type: ignore[assignment]
        if word is None:
            return b""
        if self._byte_level:
            known = [self._alphabet.get(character) for character in word]
            return word.encode() if None in known else bytes(known)  # type: ignore[arg-type]
        if byte := _BYTE.fullmatch(word):
            return bytes.fromhex(byte[1])
        return word.replace(_SPACE, " ").encode()

    def readable(self, token: int) -> str:
        """A token as a string: its text, or ``bytes:\\xe2`` where it is a part of a character, as OpenAI writes it."""
        written = self.written(token)
        try:
            return written.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


class TextStream:
    """The text of one sequence, given out piece by piece.

    Half a character waits for its other half, and what may be the beginning of a stop string for what follows it.
    However the tokens are divided, the pieces make the same text.
    """

    def __init__(self, spell: Callable[[int], bytes], stops: Sequence[str] = ()):
        self._spell = spell  # a token's bytes
        self._stops = tuple(stops)
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.starts: list[int] = []  # of each token: characters of the text before it
        self.length = 0  # characters given out
        self.stopped = False  # at a stop string, which is dropped with all that follows

    def feed(self, tokens: Iterable[int]) -> str:
        """Take more tokens; return the text that is certain now."""
        return "".join(map(self._feed_one, tokens))

    def finish(self) -> str:
        """Return what was held back: the sequence has ended."""
        return self._take(self._decoder.decode(b"", final=True)) + self._release(len(self._held))

    def _feed_one(self, token: int) -> str:
        self.starts.append(self.length + len(self._held))
        return self._take(self._decoder.decode(self._spell(token)))

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


def _byte_alphabet() -> dict[str, int]:
    """How GPT-2's BPE writes bytes: printable Latin-1 as itself, the others as the characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
