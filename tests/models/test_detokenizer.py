"""Whatever the tokenizer and however its tokens are cut, a text is what the tokenizer itself decodes."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase
from transformers.models.byt5 import ByT5Tokenizer

from tests.models.tiny import make_tokenizer
from tests.models.tokenizers import less, make_sentencepiece_tokenizer, make_worded_tokenizer
from txlab.models.config import UnsupportedModel
from txlab.models.detokenizer import Detokenizer, Vocabulary, vocabulary_of

SENTENCEPIECE = ("llama", "metaspace", "gemma")
KINDS = ("tiny", "smollm2", *SENTENCEPIECE, "wordpiece", "bare", "deep")
CHARACTERS = (
    "a",
    "b",
    " ",
    "  ",
    "\n",
    "\t",
    "é",
    "e\u0301",
    "€",
    "日",
    "😀",
    "👨‍👩‍👧",
    "🇫🇷",
    "\ufffd",
    "<|im_end|>",
    "the",
)
PADDING = 8  # rows of a model's vocabulary beyond the tokenizer's


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    match request.param:
        case "tiny":
            return make_tokenizer()
        case "smollm2":
            return request.getfixturevalue("smollm2").tokenizer
        case "wordpiece":
            return make_worded_tokenizer(["the", "##ing", "play", ".", "n't", "'m"], decoders.WordPiece())
        case "bare":
            return make_worded_tokenizer(["the", "end", "."], None)
        case "deep":  # more than one space is stripped
            steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 3, 0)]
            return make_worded_tokenizer(["▁", "▁▁", "▁a", "b", "<0xE2>", "<0x82>", "<0xAC>"], decoders.Sequence(steps))
    return make_sentencepiece_tokenizer(request.param)


def draw(rng: random.Random, tokenizer: PreTrainedTokenizerBase, most: int) -> list[int]:
    """Any tokens, pieces of characters, or written ones; special ones and padding among them."""
    count = rng.randint(0, most)
    mode = rng.choice(["any", "bytes", "written"])
    if mode == "written":
        return tokenizer.encode("".join(rng.choices(CHARACTERS, k=count)), add_special_tokens=False)
    if mode == "any":
        return [rng.randrange(len(tokenizer) + PADDING) for _ in range(count)]
    words = ("<0xE2>", "<0x82>", "<0xAC>", "<0x20>", "<0x0A>", "â", "Ĥ", "¬", "Ġ", "Ċ", "▁", "▁a", "a", "the", ".")
    known = [i for i in map(tokenizer.get_vocab().get, words) if i is not None]
    return rng.choices([*known, tokenizer.eos_token_id, len(tokenizer)], k=count)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int], special: bool = False) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_text_is_decoded_less_the_prompt(tokenizer, seed, special):
    rng = random.Random(seed)
    vocabulary = vocabulary_of(tokenizer)
    for _ in range(60):
        prompt, tokens = draw(rng, tokenizer, 6), draw(rng, tokenizer, 12)
        expected = less(decode(tokenizer, prompt + tokens, special), decode(tokenizer, prompt, special))
        text, said = Detokenizer(vocabulary, prompt, special=special), ""
        for token in tokens:
            said += text.feed(token)
            assert expected.startswith(said), "what was given out is never taken back"
            assert text.length == len(said)
        said += text.finish()
        assert said == expected, (prompt, tokens)
        assert len(text.starts) == len(tokens)
        assert [0, *text.starts, len(said)] == sorted([0, *text.starts, len(said)])
        assert vocabulary.pieces(tokens, prompt, special=special) == [
            said[a:b] for a, b in pairwise([*text.starts, len(said)])
        ]


@pytest.mark.parametrize("seed", range(4))
def test_of_a_text_that_grows_the_end_waits(tokenizer, seed):
    rng, vocabulary = random.Random(seed), vocabulary_of(tokenizer)
    for _ in range(50):
        prompt, tokens = draw(rng, tokenizer, 6), draw(rng, tokenizer, 12)
        pieces = vocabulary.pieces(tokens, prompt, growing=True)
        assert len(pieces) == len(tokens)
        assert "".join(vocabulary.pieces(tokens, prompt)).startswith("".join(pieces))


@pytest.mark.parametrize("kind", [None, *SENTENCEPIECE])
def test_half_a_character_waits(kind):
    tokenizer = make_sentencepiece_tokenizer(kind) if kind else make_tokenizer()
    tokens = tokenizer.encode("a😀b", add_special_tokens=False)
    text = Detokenizer(vocabulary_of(tokenizer), tokenizer.encode("x"))
    told = [text.feed(token) for token in tokens]
    assert told[-5:] == (["", "", "", "", "😀b"] if kind else ["", "", "", "😀", "b"])
    half = Detokenizer(vocabulary_of(tokenizer), tokenizer.encode("x"))
    for token in tokens[:-2]:
        half.feed(token)
    assert half.finish() == ("\ufffd" * 3 if kind else "\ufffd"), "as decode gives them"


def test_a_character_belongs_to_its_last_token():
    for tokenizer in (make_tokenizer(), make_sentencepiece_tokenizer()):
        tokens = tokenizer.encode("a😀b", add_special_tokens=False)
        assert vocabulary_of(tokenizer).pieces(tokens, tokens)[-5:] == ["", "", "", "😀", "b"]


def test_a_prompt_may_end_within_a_character(tokenizer):
    """Its other half completes it; where that does not come, nothing is said of it again."""
    vocabulary, tokens = vocabulary_of(tokenizer), tokenizer.encode("€", add_special_tokens=False)
    if len(tokens) < 3 or decode(tokenizer, tokens) != "€":
        pytest.skip("has no bytes")
    assert "".join(vocabulary.pieces(tokens[-1:], tokens[:-1])) == "€"
    word = tokenizer.encode("the", add_special_tokens=False)
    assert "".join(vocabulary.pieces(word, tokens[:-1])).strip() == "the"
    assert vocabulary.pieces([], tokens[:-1]) == []


def test_the_first_word_of_a_text_keeps_its_space():
    vocabulary = vocabulary_of(tokenizer := make_sentencepiece_tokenizer())
    word = tokenizer.convert_tokens_to_ids("▁the")
    assert vocabulary.pieces([word, word]) == ["the", " the"]
    assert vocabulary.pieces([word, word], [word]) == [" the", " the"]
    assert vocabulary.pieces([word], [tokenizer.bos_token_id]) == ["the"], "a special token is no text"
    text = Detokenizer(vocabulary, [tokenizer.bos_token_id])
    assert text.feed(word) == "the"
    assert text.swallowed == {0: " "}
    assert (vocabulary.readable(word), vocabulary.readable(word, " ")) == (" the", "the")


def test_tokens_are_readable_one_by_one(tokenizer):
    vocabulary = vocabulary_of(tokenizer)
    for token in range(min(len(tokenizer), 2000)):
        readable, written = vocabulary.readable(token), vocabulary.written(token)
        if readable.startswith("bytes:"):
            assert bytes.fromhex(readable.removeprefix("bytes:").replace("\\x", "")) == written
            with pytest.raises(UnicodeDecodeError):
                written.decode()
        else:
            assert readable.encode() == written
            assert not {"Ġ", "Ċ", "▁"} & set(readable)
    assert vocabulary.readable(tokenizer.eos_token_id).strip() == tokenizer.eos_token
    assert vocabulary.spoken(tokenizer.eos_token_id) == b""
    assert vocabulary.written(len(tokenizer)) == b"", "a row of padding"
    assert vocabulary.written(-1) == b""


def test_nothing_is_tidied_up():
    """Though the files of some models ask for it, which would change what was trained on."""
    tokenizer = make_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    tokens = tokenizer.encode("the end . is n't")
    assert vocabulary_of(tokenizer).decode(tokens) == "the end . is n't"
    assert "".join(vocabulary_of(tokenizer).pieces(tokens)) == "the end . is n't"


def test_parts_of_characters_are_written_as_bytes():
    for tokenizer in (make_tokenizer(), make_sentencepiece_tokenizer()):
        tokens = tokenizer.encode("é", add_special_tokens=False)[-2:]
        assert [vocabulary_of(tokenizer).readable(token) for token in tokens] == ["bytes:\\xc3", "bytes:\\xa9"]


def test_the_real_tokenizer_lacks_byte_characters(smollm2):
    """It is a byte-level one all the same."""
    vocabulary = vocabulary_of(smollm2.tokenizer)
    assert vocabulary.byte_level
    tokens = smollm2.tokenizer.encode(" Paris.\n\nThe")
    assert [vocabulary.readable(token) for token in tokens] == [" Paris", ".", "\n", "\n", "The"]


def test_places_are_where_the_user_wrote_the_tokens():
    for tokenizer in (make_tokenizer(), make_sentencepiece_tokenizer()):
        text = "a  naïve 😀<|im_end|> fox"
        tokens = tokenizer.encode(text)
        starts = vocabulary_of(tokenizer).places(text, tokens)
        assert starts == sorted(starts)
        assert len(starts) == len(tokens)
        at = tokens.index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        assert text[starts[at] : starts[at + 1]].rstrip() == "<|im_end|>"
        assert vocabulary_of(tokenizer).places(text, [5, *tokens[1:-1], 6]) is None, "tokens of something else"


@pytest.mark.parametrize("token", ["a", "€", "\ufffd", " "])
def test_long_texts_cost_what_they_are_long(tokenizer, token):
    """Counted in decodes: each token is decoded when it is met first, and never again."""
    tokens = tokenizer.encode(token, add_special_tokens=False) * 2000
    vocabulary, calls = Vocabulary(tokenizer), []
    count = vocabulary.decode
    vocabulary.decode = lambda ids, **options: calls.append(len(ids)) or count(ids, **options)  # type: ignore[method-assign]
    for tail in (tokens, tokens[:-1]):
        text = "".join(vocabulary.pieces(tail, tokens[:3]))
        assert tokens[:3] == [] or text == less(decode(tokenizer, tokens[:3] + tail), decode(tokenizer, tokens[:3]))
    assert sum(calls) < 5 * len(tokens) + 100


def test_one_vocabulary_for_a_tokenizer(tokenizer):
    assert vocabulary_of(tokenizer) is vocabulary_of(tokenizer)


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.CTC(),
        decoders.BPEDecoder(),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace(" .", ".")]),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
    ],
)
def test_decoders_whose_texts_cannot_be_cut_are_refused(decoder):
    with pytest.raises(UnsupportedModel, match=r"tokenizer decoder.*ByteLevel"):
        vocabulary_of(make_worded_tokenizer(["a"], decoder))


def test_a_tokenizer_in_python_is_refused():
    with pytest.raises(UnsupportedModel, match=r"ByT5Tokenizer.*tokenizer\.json"):
        vocabulary_of(ByT5Tokenizer())


def test_a_prompt_that_ends_with_half_of_a_surrogate():
    """Bytes ED A3 begin no character: the prompt ends with two broken ones, and neither is told again."""
    vocabulary = Vocabulary(tokenizer := make_tokenizer())
    token_of = {vocabulary.written(token): token for token in range(3, len(tokenizer))}
    prompt, tokens = ([token_of[byte] for byte in part] for part in ((b"q", b"\xed", b"\xa3"), (b"\xfe", b"s")))
    expected = less(vocabulary.decode(prompt + tokens), vocabulary.decode(prompt))
    assert "".join(vocabulary.pieces(tokens, prompt)) == expected == "\ufffds"
