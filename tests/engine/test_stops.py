"""Stop strings end a sequence at the token that completes them, wherever the borders of tokens and characters lie."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.models.tiny import make_tokenizer
from txlab.engine.stops import StopStrings, stop_id_table


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def slow_first(tokens, strings, tokenizer):
    """Reference: decode every beginning as a whole."""
    ends = (n for n in range(1, len(tokens) + 1) if any(s in tokenizer.decode(tokens[:n]) for s in strings))
    return next(ends, None)


@pytest.mark.parametrize("text", ["a naïve café at 日本 🎉 end", "the quick brown fox", "ananabay itsplay"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_every_substring_is_found_at_its_last_token(tokenizer, text, chunk):
    """Tokens are single bytes or merged ones; they come in chunks, as decoding delivers them."""
    tokens = tokenizer.encode(text)
    for begin in range(len(text)):
        for end in range(begin + 1, min(begin + 7, len(text)) + 1):
            stops = StopStrings([text[begin:end]], tokenizer)
            found = None
            for start in range(0, len(tokens), chunk):
                found = stops.first(tokens[: start + chunk], start)
                if found is not None:
                    break
            assert found == slow_first(tokens, [text[begin:end]], tokenizer), repr(text[begin:end])


def test_random_bytes_find_what_a_whole_decode_finds(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(200):
        tokens = rng.integers(3, len(tokenizer), 40).tolist()
        text = tokenizer.decode(tokens)
        begin = int(rng.integers(0, len(text) - 4))
        string = text[begin : begin + 4]
        if "\ufffd" not in string:  # what it stands for may become a character with the next byte
            assert StopStrings([string, "never"], tokenizer).first(tokens, 0) == slow_first(tokens, [string], tokenizer)


def test_a_space_that_a_decoder_strips_at_the_front_is_found():
    words = Tokenizer(models.WordLevel({"▁the": 0, "▁end": 1}))
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert tokenizer.decode([1]) == "end"
    assert StopStrings([" "], tokenizer).first([0, 1, 0], 0) == 2
    assert StopStrings([" end"], tokenizer).first([0, 0, 1, 0], 0) == 3


def test_each_token_is_looked_at_once(tokenizer, monkeypatch):
    tokens, decoded = tokenizer.encode("some words without an end"), []
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(ids) or "")
    assert StopStrings(["stop"], tokenizer).first(tokens, len(tokens) - 3) is None
    assert len(decoded) == 3


def test_without_strings_nothing_is_decoded():
    assert StopStrings([], None).first([1, 2, 3], 0) is None  # type: ignore[arg-type]


def test_stop_ids_are_padded_to_few_widths():
    assert stop_id_table([(), (5,)]).tolist() == [[-1] * 4, [5, -1, -1, -1]]
    assert stop_id_table([range(4)]).shape == (1, 4)
    assert stop_id_table([range(5), ()]).shape == (2, 8)
