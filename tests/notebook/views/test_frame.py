"""Options that follow a reader's clicks, and samples as decoded text, by token where that is asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from tests.models.tiny import make_tokenizer
from tests.models.tokenizers import make_sentencepiece_tokenizer
from tests.notebook.synthetic import decode, encode
from txlab.engine.bus import LabView, LiveSample
from txlab.engine.events import SampleCompleted
from txlab.models.detokenizer import vocabulary_of
from txlab.notebook.errors import TxlabError
from txlab.notebook.views.frame import MAX_SMOOTHING, SAMPLE_TOKENS, BoardOptions, Excerpt, make_frame


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("metric", "reward", BoardOptions(metric="reward")),
        ("x", "time", BoardOptions(x="time")),
        ("smoothing", "0.6", BoardOptions(smoothing=0.6)),
        ("smoothing", "7", BoardOptions(smoothing=MAX_SMOOTHING)),
        ("smoothing", "-1", BoardOptions()),
        ("log", "log", BoardOptions(log=True)),
        ("log", "linear", BoardOptions(log=False)),
        ("logprobs", None, BoardOptions(logprobs=True)),
    ],
)
def test_a_control_changes_its_option(setting: str, value: str | None, expected: BoardOptions) -> None:
    assert BoardOptions().changed(setting, value) == expected


@pytest.mark.parametrize(
    ("setting", "value"),
    [("x", "loss"), ("smoothing", "a lot"), ("smoothing", "nan"), ("log", "maybe"), ("metric", ""), ("stop", "1")],
)
def test_what_makes_no_sense_changes_nothing(setting: str, value: str) -> None:
    options = BoardOptions(smoothing=0.5, log=True)
    assert options.changed(setting, value) == options


def test_options_in_words() -> None:
    assert BoardOptions.of("reward", "time", 0.5, "linear", True) == BoardOptions("reward", "time", 0.5, False, True)
    assert BoardOptions.of("loss", "step", 0.0, "auto", False) == BoardOptions()


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric": None},
        {"x": "loss"},
        {"smoothing": float("nan")},
        {"smoothing": "much"},
        {"smoothing": -0.1},
        {"scale": ""},
    ],
)
def test_options_that_there_are_not(wrong: dict) -> None:
    (name,) = wrong
    right = {"metric": "loss", "x": "step", "smoothing": 0.0, "scale": "auto", "logprobs": False}
    with pytest.raises(TxlabError, match=f"{name} is .*: expected "):
        BoardOptions.of(**right | wrong)


def test_hiding_twice_shows_again() -> None:
    hidden = BoardOptions().changed("hide", None, "a").changed("hide", None, "b")
    assert hidden.hidden == {"a", "b"}
    assert hidden.changed("hide", None, "a").hidden == {"b"}
    opened = hidden.changed("more", None, "a")
    assert (opened.opened, opened.hidden) == ({"a"}, {"a", "b"})
    assert opened.changed("more", None, "a").opened == set()


def excerpt(sample: SampleCompleted | LiveSample, logprobs: bool = True) -> Excerpt:
    live = isinstance(sample, LiveSample)
    view = LabView(1, (), () if live else (sample,), 0, 0.0, streaming=(sample,) if live else ())
    (found,) = make_frame(view, decode, "m", "u", options=BoardOptions(logprobs=logprobs)).excerpts
    return found


def completed(text: str, logprobs: np.ndarray | None = None) -> SampleCompleted:
    drawn = encode(text)
    scores = np.zeros(len(drawn), np.float32) if logprobs is None else logprobs.astype(np.float32)
    return SampleCompleted(None, encode("prompt"), drawn, scores, "stop", 0.5)


def test_tokens_are_told_apart_only_on_request() -> None:
    sample = completed("abc", np.array([-0.5, -1.0, -2.0]))
    assert excerpt(sample, logprobs=False).pieces == ()
    assert excerpt(sample).pieces == (("a", -0.5), ("b", -1.0), ("c", -2.0))


def test_pieces_join_to_the_text_where_that_is_cut() -> None:
    found = excerpt(completed("x" * (SAMPLE_TOKENS + 5)))
    assert found.text == "x" * SAMPLE_TOKENS + "…" == "".join(text for text, _ in found.pieces)


def test_of_what_grows_the_end_is_shown_and_everything_counted() -> None:
    tokens = encode("y" * SAMPLE_TOKENS)
    found = excerpt(LiveSample(None, encode("p"), tokens, np.zeros(len(tokens), np.float32), drawn=1000))
    assert found.live
    assert found.tokens == 1000
    assert found.text == "…" + "y" * SAMPLE_TOKENS == "".join(text for text, _ in found.pieces)


@pytest.mark.parametrize("make", [make_tokenizer, make_sentencepiece_tokenizer])
def test_samples_say_what_is_decoded_after_their_prompt(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    """Without special tokens, while the prompt shows its own; half a character waits as long as the text grows."""
    tokenizer = make()
    prompt, drawn = (np.array(tokenizer.encode(text, add_special_tokens=False)) for text in ("one<|im_end|>", "two é"))
    drawn = np.append(drawn[:-1], [tokenizer.eos_token_id, drawn[-1]])  # in the midst of a character
    scores = np.zeros(len(drawn), np.float32)

    def found(sample: SampleCompleted | LiveSample) -> Excerpt:
        live = isinstance(sample, LiveSample)
        view = LabView(1, (), () if live else (sample,), 0, 0.0, streaming=(sample,) if live else ())
        options = BoardOptions(logprobs=True)
        (one,) = make_frame(view, vocabulary_of(tokenizer).pieces, "m", "u", options=options).excerpts
        return one

    whole, before = (tokenizer.decode(i, skip_special_tokens=True) for i in ([*prompt, *drawn], prompt))
    ended = found(SampleCompleted(None, prompt, drawn, scores, "stop", 0.5))
    assert ended.text == "".join(text for text, _ in ended.pieces) == whole.removeprefix(before)
    assert ended.text.endswith(" é")
    assert ended.prompt == tokenizer.decode(prompt)
    assert found(LiveSample(None, prompt, drawn[:-1], scores[:-1], len(drawn) - 1)).text == ended.text.removesuffix("é")
