"""Text that comes in pieces is the text that comes at once."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerBase

from tests.models.tiny import make_tokenizer
from tests.models.tokenizers import make_sentencepiece_tokenizer
from txlab.models.detokenizer import Detokenizer, Vocabulary, vocabulary_of
from txlab.server.openai.text import TextStream

CHARACTERS = "ab \né€😀\ufffd"


@pytest.fixture(scope="module", params=["tiny", "smollm2", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2").tokenizer
    return make_tokenizer() if request.param == "tiny" else make_sentencepiece_tokenizer("gemma")


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer)


def stream_of(vocabulary: Vocabulary, stops: Sequence[str] = ()) -> TextStream:
    return TextStream(Detokenizer(vocabulary), stops)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def pieces(stream: TextStream, tokens: list[int], rng: random.Random) -> list[str]:
    """Feed ``tokens`` in random portions."""
    told = []
    while tokens:
        count = rng.randint(1, 5)
        told.append(stream.feed(tokens[:count]))
        tokens = tokens[count:]
    return [*told, stream.finish()]


@pytest.mark.parametrize("seed", range(40))
def test_pieces_make_the_decoded_text(tokenizer, vocabulary, seed):
    rng = random.Random(seed)
    noise = rng.choices(range(len(tokenizer)), k=40)  # half characters and special tokens among them
    written = encode(tokenizer, "".join(rng.choices(CHARACTERS, k=40)))
    for tokens in (noise, written):
        assert "".join(pieces(stream_of(vocabulary), tokens, rng)) == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_of_a_stop_string_is_told(tokenizer, vocabulary, seed):
    rng = random.Random(seed)
    stops = ["".join(rng.choices("ab\né", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
    tokens = encode(tokenizer, "".join(rng.choices("ab\né", k=40)))
    decoded = [tokenizer.decode(tokens[: end + 1]) for end in range(len(tokens))]
    last = next((i for i, text in enumerate(decoded) if any(stop in text for stop in stops)), len(tokens) - 1)
    ends = [at for stop in stops if (at := decoded[last].find(stop)) >= 0]
    expected = decoded[last][: min(ends)] if ends else decoded[last]

    stream, told = stream_of(vocabulary, stops), ""
    for piece in pieces(stream, tokens[: last + 1], rng):
        told += piece
        assert expected.startswith(told)
    assert told == expected
    assert stream.stopped == bool(ends)


def test_what_could_begin_a_stop_string_waits(tokenizer, vocabulary):
    stream = stream_of(vocabulary, ["\n\nQ"])
    assert [stream.feed(encode(tokenizer, text)) for text in ("a\n", "\n", "b", "\n")] == ["a", "", "\n\nb", ""]
    assert stream.finish() == "\n"


def test_of_two_stop_strings_in_one_token_the_first_counts(tokenizer, vocabulary):
    assert len(encode(tokenizer, "fox jumps")) < len("fox jumps")
    for stops in (["u", "j"], ["j", "u"]):
        stream = stream_of(vocabulary, stops)
        assert stream.feed(encode(tokenizer, "fox jumps")) + stream.finish() == "fox "
