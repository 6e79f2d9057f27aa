"""From tokens to text: the one way by which every text leaves the lab, whole or bit by bit.

The text after a prompt is ``decode(prompt + tokens)`` less ``decode(prompt)``. A decoder looks at little more than one
token at a time, so a token's text is found once, in the middle of a text, and kept: what is left to do for a sequence
is to put bytes together to characters, and to see what the decoder does at the very beginning.
"""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from txlab.models.config import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = Sequence[int] | np.ndarray  # token ids: a list, or (n,) int32

BROKEN = "\ufffd"  # stands for bytes that are no character

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how SentencePiece writes a byte that no piece has
# Steps of a decoder that look at one token at a time.
_LOCAL = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"}
_SUPPORTED = ("ByteLevel", *sorted(_LOCAL))


@lru_cache(maxsize=2)  # a process serves one model, and another after a restart: older ones are let go
def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The vocabulary of a tokenizer, made once. Raises UnsupportedModel where its texts cannot be cut."""
    return Vocabulary(tokenizer)


class Vocabulary:
    """Spelling of each token: text, or bytes that make characters only together with those of its neighbours."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedModel("tokenizer", type(tokenizer).__name__, ("what a tokenizer.json describes",))
        self._tokenizer = tokenizer
        self._words = backend.id_to_token
        steps = _decoder_steps(backend)
        kinds = {step["type"] for step in steps}
        self._alphabet = _byte_alphabet() if kinds == {"ByteLevel"} else None
        self._byte_fallback = "ByteFallback" in kinds
        strips = [step for step in steps if step["type"] == "Strip"]
        self._blank = " " + "".join(step["content"] for step in strips)
        self._copies = max([1, *(step["start"] for step in strips)])  # so many that the last one is whole
        self._special = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._spellings: dict[int, str | bytes] = {}

    @property
    def special_words(self) -> list[str]:
        """Special tokens, which no text shows."""
        return [self._words(token) for token in sorted(self._special)]

    def decode(self, tokens: Tokens, *, special: bool = False) -> str:
        """The text of tokens, with special ones where ``special``; nothing is tidied up."""
        ids = [int(token) for token in tokens]
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def pieces(self, tokens: Tokens, prompt: Tokens = (), *, special: bool = False, growing: bool = False) -> list[str]:
        """The text that ``tokens`` add to a prompt's, by token; joined, the pieces are the text.

        A character of several tokens belongs to the last of them. Of a text that is ``growing``, what is not certain
        yet is left out.
        """
        text = Detokenizer(self, prompt, special=special)
        said = "".join(map(text.feed, ids := [int(token) for token in tokens]))
        said += "" if growing else text.finish()
        found = [said[a:b] for a, b in pairwise([*text.starts, len(said)])]
        return found + [""] * (len(ids) - len(found))

    def spelling(self, token: int) -> str | bytes:
        """Text or bytes that a token adds in the middle of a text; nothing for an id that is unknown."""
        found = self._spellings.get(token)
        if found is None:
            found = self._spellings[token] = self._spell(token)
        return found

    def spoken(self, token: int) -> str | bytes:
        """The spelling of a token, nothing where it is special."""
        return b"" if token in self._special else self.spelling(token)

    def written(self, token: int) -> bytes:
        """Bytes of a token, special or not."""
        spelling = self.spelling(token)
        return spelling.encode() if isinstance(spelling, str) else spelling

    def readable(self, token: int, less: str = "") -> str:
        """A token as a string: its text, or ``bytes:\\xe2`` where it is a part of a character, as OpenAI writes it.

        ``less`` is what the beginning of a text swallows of it.
        """
        written = self.written(token)
        try:
            return written.decode().removeprefix(less)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)

    def places(self, text: str, tokens: Sequence[int]) -> list[int] | None:
        """Where in ``text`` each of the tokens begins that it was encoded to; None where these are others.

        Tokens that a template adds stand at the text's ends.
        """
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = list(encoded["input_ids"]), encoded["offset_mapping"]
        added = len(tokens) - len(ids)
        before = next((n for n in range(added + 1) if list(tokens[n : n + len(ids)]) == ids), None)
        if before is None:
            return None
        starts, end = [0] * before, 0
        for first, last in spans:
            starts.append(min(first, end))  # spaces that an offset leaves out belong to the token behind them
            end = max(end, last)
        return starts + [len(text)] * (added - before)

    def bytes_after(self, prompt: Tokens, special: bool) -> Utf8:
        """Decoder of the bytes that follow a byte-level prompt."""
        spell, before = self.spelling if special else self.spoken, b""
        for token in reversed(prompt):
            if len(before) >= 3:  # bytes of a character that is not complete
                break
            spelling = spell(int(token))
            assert isinstance(spelling, bytes)
            before = spelling + before
        return Utf8(before)

    @property
    def byte_level(self) -> bool:
        """Whether all tokens are bytes, which any neighbours may complete."""
        return self._alphabet is not None

    def visible(self, spelling: str | bytes) -> bool:
        """Whether a decoder that strips the beginning of a text leaves something of this."""
        return isinstance(spelling, str) and bool(spelling.strip(self._blank))

    def _spell(self, token: int) -> str | bytes:
        word: str | None = self._words(token) if token >= 0 else None
        if word is None:
            return b""
        if self._alphabet is not None:
            known = [self._alphabet.get(character) for character in word]
            return word.encode() if None in known else bytes(known)  # type: ignore[arg-type]
        if self._byte_fallback and (byte := _BYTE.fullmatch(word)):
            return bytes.fromhex(byte[1])
        before, after = ([token] * n for n in (self._copies, self._copies + 1))
        return self.decode(after, special=True)[len(self.decode(before, special=True)) :]


class Detokenizer:
    """The text of one sequence after its prompt, given out as soon as it is certain.

    However the tokens are divided, the pieces make the same text. Half a character waits for its other half. So do
    bytes of a SentencePiece tokenizer, up to the first token that is none: one wrong byte makes all of them wrong.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Tokens = (), *, special: bool = False):
        """Begin after ``prompt``; ``special``: with special tokens, as they are written."""
        self.starts: list[int] = []  # of each token whose place is certain: characters of the text before it
        self.length = 0  # characters given out
        self.swallowed: dict[int, str] = {}  # of tokens by index: what the beginning of the text left out of them
        self._spell = vocabulary.spelling if special else vocabulary.spoken
        self._fed = 0
        self._opening: _Opening | None = None
        self._bytes: Bytes
        if vocabulary.byte_level:
            self._bytes = vocabulary.bytes_after(prompt, special)
        else:
            self._bytes = row = FallbackBytes()
            self._open(vocabulary, prompt, special)
            row.begin()

    def feed(self, token: int) -> str:
        """Take one more token; return the text that is certain now."""
        self._fed += 1
        if self._opening is not None:
            self._opening.tokens.append(token)
        return self._give(self._push(self._spell(token)))

    def finish(self) -> str:
        """Return what was held back: the sequence has ended."""
        return self._give(self._bytes.flush(), last=True)

    def waiting(self, count: int) -> str:
        """The last characters, ``count`` at most, that are complete and wait only for what follows them."""
        return self._bytes.waiting(count)

    def _open(self, vocabulary: Vocabulary, prompt: Tokens, special: bool) -> None:
        """Take the prompt's last tokens, from the last one on that no beginning of a text swallows."""
        tail: list[int] = []
        for token in map(int, reversed(prompt)):
            tail.append(token)
            if vocabulary.visible(self._spell(token)):
                break
        if len(tail) == 1 and vocabulary.visible(self._spell(tail[0])):
            return
        tail.reverse()
        self._opening = _Opening(vocabulary, tail, special)
        for token in tail:
            self._opening.parts += self._push(self._spell(token))

    def _push(self, spelling: str | bytes) -> list[str]:
        """Texts of the oldest tokens that have none yet, as far as they are certain."""
        if isinstance(spelling, bytes):
            return self._bytes.push(spelling)
        return [*self._bytes.flush(), spelling]

    def _give(self, parts: list[str], last: bool = False) -> str:
        """Note where the tokens of these parts begin."""
        if self._opening is not None:
            settled = self._opening.settle(parts, last)
            if settled is None:
                return ""
            parts, self.swallowed = settled
            self._opening = None
        for part in parts:
            if len(self.starts) < self._fed:
                self.starts.append(self.length)
            self.length += len(part)
        return "".join(parts)


class Bytes(Protocol):
    """Puts the bytes of tokens together to characters."""

    def push(self, data: bytes) -> list[str]:
        """Take a token's bytes; return the texts of the oldest tokens that have none yet, as far as they are certain.

        No bytes, as of a special token, are in nobody's way.
        """

    def flush(self) -> list[str]:
        """Return what was held back: no more bytes follow."""

    def waiting(self, count: int) -> str:
        """The last characters, ``count`` at most, that are complete and wait only for what follows them."""


class Utf8:
    """Bytes of a byte-level tokenizer: each wrong stretch is one broken character, and harms no other."""

    def __init__(self, before: bytes):
        """Begin after the last bytes of a prompt, which may have ended within a character."""
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._decoder.decode(before)
        self._told = self._decoder.getstate()[0].decode(errors="replace")  # broken, unless it goes on: the prompt's end

    def push(self, data: bytes) -> list[str]:
        return [self._take(self._decoder.decode(data))]

    def flush(self) -> list[str]:
        return [self._take(self._decoder.decode(b"", final=True))]

    def waiting(self, count: int) -> str:
        return ""

    def _take(self, text: str) -> str:
        if self._told and text:
            text, self._told = text.removeprefix(self._told), ""
        return text


class FallbackBytes:
    """Bytes of a SentencePiece tokenizer: those in a row are all characters, or all broken."""

    def __init__(self) -> None:
        self._start()

    def push(self, data: bytes) -> list[str]:
        if not data and not self._row:
            return [""]
        self._row.append(data)
        text = self._decode(data)
        self._parts.append(text)
        self._characters += text
        return []

    def flush(self) -> list[str]:
        parts = self._parts if self._whole else [BROKEN * len(data) for data in self._row]
        self._start()
        return parts

    def waiting(self, count: int) -> str:
        return "".join(self._characters[max(self._own, len(self._characters) - count) :]) if self._whole else ""

    def begin(self) -> None:
        """Count everything so far as the prompt's."""
        self._own = len(self._characters)

    @property
    def _whole(self) -> bool:
        return not self._wrong and not self._decoder.getstate()[0]

    def _start(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("strict")
        self._row: list[bytes] = []  # of each token
        self._parts: list[str] = []  # the characters that each of them completes
        self._characters: list[str] = []
        self._own = 0  # how many of them are the prompt's
        self._wrong = False

    def _decode(self, data: bytes) -> str:
        try:
            return "" if self._wrong else self._decoder.decode(data)
        except UnicodeDecodeError:
            self._wrong = True
            return ""


class _Opening:
    """The beginning of a text, where a decoder may swallow spaces, or bytes go on that a prompt began.

    Here the decoder itself is asked, until it says something.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: list[int], special: bool):
        self.tokens = list(prompt)
        self.parts: list[str] = []  # texts of the tokens, were they in the middle of a text
        self._vocabulary = vocabulary
        self._special = special
        self._prompt = len(prompt)
        self._before = vocabulary.decode(prompt, special=special)

    def settle(self, parts: list[str], last: bool) -> tuple[list[str], dict[int, str]] | None:
        """Texts of the tokens after the prompt, and what is left out of them by index; None where it is too early."""
        self.parts += parts
        if not last and not any(parts):
            return None
        whole = self._vocabulary.decode(self.tokens, special=self._special)
        if not last and not whole:
            return None
        text = _less(whole, self._before)
        missing = sum(map(len, self.parts)) - len(text)
        own: list[str] = []
        swallowed: dict[int, str] = {}
        for index, part in enumerate(self.parts, -self._prompt):
            left_out, part, missing = part[:missing], part[missing:], max(0, missing - len(part))
            if index < 0:
                continue
            own.append(part)
            if left_out:
                swallowed[index] = left_out
        if own:
            own[0] = text[: len(text) - sum(map(len, own))] + own[0]  # bytes of the prompt that turned out wrong
        return own, swallowed


def _less(whole: str, before: str) -> str:
    """``whole`` from where it is not ``before`` any more."""
    differ = (i for i, (one, other) in enumerate(zip(whole, before, strict=False)) if one != other)
    return whole[next(differ, min(len(whole), len(before))) :]


def _decoder_steps(backend: Any) -> list[dict[str, Any]]:
    """Steps of a tokenizer's decoder, in order; UnsupportedModel where a token's text depends on far ones."""
    steps = [] if backend.decoder is None else list(_flat(json.loads(backend.decoder.__getstate__())))
    fused = False
    for step in steps:
        kind = step["type"]
        pattern = step.get("pattern", {})
        if (
            (kind not in _LOCAL and kind != "ByteLevel")
            or (kind == "ByteLevel" and len(steps) > 1)
            or (kind == "Strip" and step["stop"])
            or (kind == "Replace" and fused and len(pattern.get("String", "  ")) > 1)
        ):
            raise UnsupportedModel("tokenizer decoder", step, _SUPPORTED)
        fused = fused or kind == "Fuse"
    return steps


def _flat(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _flat(step)
    else:
        yield decoder


def _byte_alphabet() -> dict[str, int]:
    """How GPT-2's BPE writes bytes: printable Latin-1 as itself, the others as the characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
