"""Text that comes in pieces is the text that comes at once."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.models.tiny import make_tokenizer
from txlab.server.openai.text import TextStream, Vocabulary

CHARACTERS = "ab \né€😀\ufffd"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


def pieces(stream: TextStream, tokens: list[int], rng: random.Random) -> list[str]:
    """Feed ``tokens`` in random portions."""
    told = []
    while tokens:
        count = rng.randint(1, 5)
        told.append(stream.feed(tokens[:count]))
        tokens = tokens[count:]
    return [*told, stream.finish()]


@pytest.mark.parametrize("seed", range(100))
def test_pieces_make_the_decoded_text(tokenizer, vocabulary, seed):
    rng = random.Random(seed)
    noise = rng.choices(range(len(tokenizer)), k=40)  # half characters and special tokens among them
    written = tokenizer.encode("".join(rng.choices(CHARACTERS, k=40)))
    for tokens in (noise, written):
        assert "".join(pieces(TextStream(vocabulary.spoken), tokens, rng)) == tokenizer.decode(
            tokens, skip_special_tokens=True
        )


def test_no_piece_ends_within_a_character(tokenizer, vocabulary):
    stream = TextStream(vocabulary.spoken)
    told = [stream.feed([token]) for token in tokenizer.encode("a😀b")]
    assert told == ["a", "", "", "", "😀", "b"]
    assert stream.starts == [0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("seed", range(100))
def test_nothing_of_a_stop_string_is_told(tokenizer, vocabulary, seed):
    rng = random.Random(seed)
    stops = ["".join(rng.choices("ab\né", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
    tokens = tokenizer.encode("".join(rng.choices("ab\né", k=40)))
    decoded = [tokenizer.decode(tokens[: end + 1]) for end in range(len(tokens))]
    last = next((i for i, text in enumerate(decoded) if any(stop in text for stop in stops)), len(tokens) - 1)
    ends = [at for stop in stops if (at := decoded[last].find(stop)) >= 0]
    expected = decoded[last][: min(ends)] if ends else decoded[last]

    stream, told = TextStream(vocabulary.spoken, stops), ""
    for piece in pieces(stream, tokens[: last + 1], rng):
        told += piece
        assert expected.startswith(told)
    assert told == expected
    assert stream.stopped == bool(ends)


def test_what_could_begin_a_stop_string_waits(tokenizer, vocabulary):
    stream = TextStream(vocabulary.spoken, ["\n\nQ"])
    assert [stream.feed(tokenizer.encode(text)) for text in ("a\n", "\n", "b", "\n")] == ["a", "", "\n\nb", ""]
    assert stream.finish() == "\n"


def test_of_two_stop_strings_in_one_token_the_first_counts(tokenizer, vocabulary):
    assert "qu" in tokenizer.tokenize("quick")
    for stops in (["u", "q"], ["q", "u"]):
        stream = TextStream(vocabulary.spoken, stops)
        assert stream.feed(tokenizer.encode("a quick")) + stream.finish() == "a "


def test_sentencepiece_tokens_are_spelled_with_spaces_and_bytes():
    words = ["▁Paris", "is", "<0xE2>", "<0x82>", "<0xAC>", "</s>"]
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    tokens = [1, 0, 2, 3, 4, 5]
    assert "".join(map(TextStream(Vocabulary(tokenizer).spoken).feed, ([t] for t in tokens))) == "is Paris€"
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "is Paris€"


def test_tokens_are_readable_one_by_one(tokenizer, vocabulary):
    end, padding = tokenizer.eos_token_id, len(tokenizer)
    assert (vocabulary.readable(end), vocabulary.spoken(end)) == ("<|im_end|>", b"")
    assert vocabulary.written(padding) == b""
    assert [vocabulary.readable(token) for token in tokenizer.encode("é")] == ["bytes:\\xc3", "bytes:\\xa9"]
