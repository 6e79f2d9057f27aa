"""Stop strings end a sequence at the token that completes them, wherever the borders of tokens and characters lie."""

from __future__ import annotations

import random

import pytest
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

from tests.models.tiny import make_tokenizer
from tests.models.tokenizers import less, make_sentencepiece_tokenizer, make_worded_tokenizer
from txlab.engine.stops import StopStrings, stop_id_table

TEXTS = ["a naïve café at 日本 🎉 end", "the quick brown fox", "ananabay\n\nitsplay\te\u0301"]


@pytest.fixture(scope="module", params=["tiny", "smollm2", "llama", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2").tokenizer
    return make_tokenizer() if request.param == "tiny" else make_sentencepiece_tokenizer(request.param)


def said(tokenizer: PreTrainedTokenizerBase, prompt: list[int], tokens: list[int]) -> str:
    """The text after a prompt, decoded as a whole."""
    whole, before = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt + tokens, prompt))
    return less(whole, before)


def beginnings(tokenizer: PreTrainedTokenizerBase, prompt: list[int], tokens: list[int]) -> list[str]:
    """Reference: the text after each token."""
    return [said(tokenizer, prompt, tokens[: n + 1]) for n in range(len(tokens))]


def first(texts: list[str], string: str) -> int | None:
    return next((n for n, text in enumerate(texts, 1) if string in text), None)


def found(stops: StopStrings, tokens: list[int], chunk: int = 100) -> int | None:
    """Give tokens in chunks, as decoding delivers them."""
    search = stops.search()
    for start in range(0, len(tokens), chunk):
        if (count := search.first(tokens[start : start + chunk])) is not None:
            return start + count
    return None


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_every_substring_is_found_at_its_last_token(tokenizer, text, chunk):
    prompt, tokens = tokenizer.encode("so"), tokenizer.encode(text, add_special_tokens=False)
    texts = beginnings(tokenizer, prompt, tokens)
    shown = texts[-1]
    for begin in range(len(shown)):
        for end in range(begin + 1, min(begin + 7, len(shown)) + 1):
            string = shown[begin:end]
            stops = StopStrings([string, "no such text"], tokenizer, prompt)
            assert found(stops, tokens, chunk) == first(texts, string), repr(string)


@pytest.mark.parametrize("seed", range(10))
def test_random_tokens_find_what_a_whole_decode_finds(tokenizer, seed):
    """Special tokens, padding and broken bytes among them."""
    rng = random.Random(seed)
    for _ in range(10):
        prompt, tokens = ([rng.randrange(len(tokenizer) + 8) for _ in range(n)] for n in (3, 40))
        texts = beginnings(tokenizer, prompt, tokens)
        text = texts[-1]
        begin = rng.randrange(max(1, len(text) - 4))
        string = text[begin : begin + rng.randint(1, 4)]
        if string and "\ufffd" not in string:  # what it stands for may become a character with the next byte
            stops = StopStrings([string, "no such text"], tokenizer, prompt)
            assert found(stops, tokens) == first(texts, string), repr(string)


def test_a_line_break_that_is_a_byte_ends_the_text_at_once():
    """SentencePiece bytes wait for what follows them, which a stop string must not."""
    tokenizer = make_sentencepiece_tokenizer()
    prompt, tokens = tokenizer.encode("so\n"), tokenizer.encode("a\n\n日b", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(tokens)[2:4] == ["<0x0A>", "<0x0A>"]
    for string, count in (("\n", 3), ("\n\n", 4), ("\n日", 7), ("日b", 8)):
        assert found(StopStrings([string], tokenizer, prompt), tokens) == count
    assert found(StopStrings(["\n"], tokenizer, prompt), tokens[-1:]) is None, "the prompt's own is none"


def test_a_space_that_a_decoder_strips_at_the_front_is_found():
    tokenizer = make_worded_tokenizer(["▁the", "▁end"], decoders.Metaspace())
    the, end = 5, 6
    assert tokenizer.decode([end]) == "end"
    assert found(StopStrings([" "], tokenizer), [the, end, the]) == 2
    assert found(StopStrings([" end"], tokenizer), [the, the, end, the]) == 3
    assert found(StopStrings([" end"], tokenizer), [end, the]) is None
    assert found(StopStrings([" end"], tokenizer, [the]), [end, the]) == 1, "after a prompt it stands"


def test_special_tokens_lie_across_strings_and_may_be_named_in_them(tokenizer):
    word = tokenizer.encode("quick", add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokens = [*word, end, *word]
    last = len(word)
    assert found(StopStrings(["<|im_end|>"], tokenizer, word), tokens) == last + 1
    assert found(StopStrings(["k<|im_end|>"], tokenizer, word), tokens) == last + 1
    cut = [token for word in word for token in (word, end)]
    assert found(StopStrings(["quick"], tokenizer, word), cut) == len(cut) - 1
    assert found(StopStrings(["im_end"], tokenizer, word), tokens) is None


def test_sequences_of_one_prompt_are_looked_at_apart(tokenizer):
    stops = StopStrings(["quick brown"], tokenizer)
    tokens = tokenizer.encode("a quick brown fox")
    one, other = stops.search(), stops.search()
    assert one.first(tokens[:2]) is None
    assert other.first(tokens) == found(stops, tokens)
    assert one.first(tokens[2:]) == found(stops, tokens) - 2


def test_without_strings_nothing_is_decoded():
    assert StopStrings([], None).search().first([1, 2, 3]) is None  # type: ignore[arg-type]


def test_stop_ids_are_padded_to_few_widths():
    assert stop_id_table([(), (5,)]).tolist() == [[-1] * 4, [5, -1, -1, -1]]
    assert stop_id_table([range(4)]).shape == (1, 4)
    assert stop_id_table([range(5), ()]).shape == (2, 8)
