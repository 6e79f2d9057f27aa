"""Every text equals what the tokenizer decodes, of whatever kind the tokenizer is, at once or in pieces."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.models.tiny import make_tiny
from tests.models.tokenizers import make_sentencepiece_tokenizer
from tests.server.conftest import serve
from tests.server.openai.conftest import OpenAILab, open_engine
from txlab.config import ServerSettings
from txlab.models.base import BaseModel

KINDS = ("tiny", "smollm2", "sentencepiece")
PROMPT = "The quick brown"
SEEDS = range(4)


@pytest.fixture(scope="module", params=KINDS)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAILab]:
    """Random weights, which draw any token: halves of characters, special ones, padding."""
    folder = tmp_path_factory.mktemp("models") / request.param
    if request.param == "tiny":
        make_tiny(folder)
    elif request.param == "smollm2":
        smollm2: BaseModel = request.getfixturevalue("smollm2")
        make_tiny(folder, vocab_size=len(smollm2.tokenizer), hidden_size=32, intermediate_size=32)
        copy_tokenizer(smollm2.tokenizer_dir, folder)
    else:
        tokenizer = make_sentencepiece_tokenizer()
        make_tiny(folder, vocab_size=len(tokenizer) + 8)
        tokenizer.save_pretrained(folder)
    with open_engine(folder) as engine, serve(engine, tmp_path_factory.mktemp("store"), ServerSettings()) as running:
        yield OpenAILab(running, str(folder))


def copy_tokenizer(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if not file.name.startswith(("config", "generation")) and file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder)


def added(lab: OpenAILab, prompt: list[int], tokens: list[int]) -> str:
    """Expectations of the lab."""
    whole, before = (
        lab.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in (prompt + tokens, prompt)
    )
    assert whole.startswith(before)
    return whole[len(before) :]


def drawn(lab: OpenAILab, seed: int, **params) -> list[int]:
    return lab.sample(PROMPT, **({"max_tokens": 60, "temperature": 1.0, "seed": seed} | params)).tokens.tolist()


def complete(lab: OpenAILab, seed: int, **body):
    options = {"model": lab.base, "prompt": PROMPT, "max_tokens": 60, "temperature": 1, "seed": seed} | body
    return lab.client.completions.create(**options)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_text_is_what_is_decoded_less_the_prompt(lab, seed):
    expected = added(lab, lab.tokenizer.encode(PROMPT), drawn(lab, seed))
    assert complete(lab, seed).choices[0].text == expected
    assert "".join(event.choices[0].text for event in complete(lab, seed, stream=True)) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_a_chat_is_what_is_decoded(lab, seed):
    messages = [{"role": "user", "content": "Hello"}]
    prompt = lab.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    options = {"model": lab.base, "max_tokens": 60, "temperature": 1, "seed": seed}
    answer = lab.client.chat.completions.create(messages=messages, **options).choices[0].message.content
    text = lab.client.completions.create(prompt=prompt, **options).choices[0].text
    assert answer == text == added(lab, prompt, lab.draw(prompt, 60, seed))
    stream = lab.client.chat.completions.create(messages=messages, stream=True, **options)
    assert "".join(event.choices[0].delta.content or "" for event in stream) == answer


@pytest.mark.parametrize("seed", SEEDS)
def test_logprob_tokens_make_the_text(lab, seed):
    """Each is its part of the text where it is whole characters, and its bytes where it is not."""
    choice = complete(lab, seed, logprobs=0).choices[0]
    logprobs, bounds = choice.logprobs, pairwise([*choice.logprobs.text_offset, len(choice.text)])
    special = set(lab.tokenizer.all_special_tokens)
    parts = [choice.text[a:b] for a, b in bounds]
    assert "".join(parts) == choice.text
    said = b""
    for token, part in zip(logprobs.tokens, parts, strict=True):
        if token.startswith("bytes:"):
            assert len(part) <= 1 or "\ufffd" in part
            said += bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
        elif token not in special:
            assert part == token or "\ufffd" in part or len(part) == len(token) == 1
            said += token.encode()
    if "\ufffd" not in choice.text:
        assert said.decode() == choice.text


def test_the_chats_logprob_bytes_are_its_text(lab):
    options = {"model": lab.base, "max_tokens": 60, "temperature": 1, "logprobs": True, "top_logprobs": 2}
    for seed in SEEDS:
        answer = lab.client.chat.completions.create(
            messages=[{"role": "user", "content": "Hello"}], seed=seed, **options
        ).choices[0]
        for token in answer.logprobs.content:
            assert not {"Ġ", "Ċ", "▁"} & set(token.token)
            assert token.token.startswith("bytes:") or bytes(token.bytes).decode() == token.token


@pytest.mark.parametrize(
    "text", ["The capital of France", " two  spaces", "A 😀 naïve\n日本\n", "e\u0301 <|im_end|> x"]
)
def test_echo_is_the_prompt_as_it_was_written(lab, text):
    choice = complete(lab, 1, prompt=text, echo=True, logprobs=1, max_tokens=8).choices[0]
    prompt = lab.tokenizer.encode(text)
    assert choice.text == text + added(lab, prompt, lab.draw(prompt, 8, 1))
    starts, tokens = choice.logprobs.text_offset, choice.logprobs.tokens
    assert starts == sorted(starts)
    assert starts[0] == 0
    special = set(lab.tokenizer.all_special_tokens)
    for token, (a, b) in zip(tokens, pairwise([*starts, len(choice.text)]), strict=True):
        if not token.startswith("bytes:") and token not in special and "\ufffd" not in choice.text[a:b]:
            assert choice.text[a:b] in (token, "") or len(token) == 1
    for token, top in zip(tokens[1:], choice.logprobs.top_logprobs[1:], strict=True):
        assert token in top


def test_the_first_token_of_an_echo_has_no_space_that_nobody_wrote(lab):
    choice = complete(lab, 1, prompt="Paris is", echo=True, logprobs=1, max_tokens=0).choices[0]
    special = set(lab.tokenizer.all_special_tokens)
    assert "".join(token for token in choice.logprobs.tokens if token not in special) == choice.text == "Paris is"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stop_string_ends_a_text_where_it_is_first_said(lab, seed):
    """Whatever tokens it lies across; the engine stops at the token with which it is complete."""
    prompt, tokens = lab.tokenizer.encode(PROMPT), drawn(lab, seed)
    texts = [added(lab, prompt, tokens[: end + 1]) for end in range(len(tokens))]
    rng = np.random.default_rng(seed)
    for _ in range(4):
        begin = int(rng.integers(1, len(texts[-1]) - 3))
        stop = texts[-1][begin : begin + int(rng.integers(1, 4))]
        if "\ufffd" in stop:
            continue  # may become a character
        end = next(i for i, text in enumerate(texts) if stop in text)
        assert drawn(lab, seed, stop=(stop,)) == tokens[: end + 1], repr(stop)
        expected = texts[-1][: texts[-1].index(stop)]
        assert complete(lab, seed, stop=stop).choices[0].text == expected
        pieces = [event.choices[0].text for event in complete(lab, seed, stop=stop, stream=True)]
        assert "".join(pieces) == expected


def test_eos_ids_that_no_token_has_do_no_harm(tmp_path):
    """Published generation_config.json files name ids beyond the vocabulary."""
    folder = make_tiny(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 151645, -1, null, true, "x"]}')
    with open_engine(folder) as engine, serve(engine, tmp_path / "store", ServerSettings()) as running:
        lab = OpenAILab(running, str(folder))
        assert complete(lab, 1).choices[0].finish_reason in ("stop", "length")
        headers = {"Authorization": f"Bearer {running.key}"}
        body = {"model": str(folder), "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
        assert httpx.post(f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=60).is_success
