"""Completions through the official client: the base model, and all that a request may say."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import openai
import pytest

PROMPT = "The quick brown"


def complete(lab, client=None, **body):
    return (client or lab.client).completions.create(
        **({"model": lab.base, "prompt": PROMPT, "max_tokens": 12, "temperature": 0} | body)
    )


def test_greedy_text_is_what_the_engine_draws(lab):
    drawn = lab.sample(PROMPT)
    completion = complete(lab)
    choice = completion.choices[0]
    assert choice.text == lab.tokenizer.decode(drawn.tokens, skip_special_tokens=True)
    assert choice.finish_reason == "length"
    assert (completion.object, completion.model) == ("text_completion", lab.base)
    assert completion.usage.prompt_tokens == len(lab.tokenizer.encode(PROMPT))
    assert completion.usage.completion_tokens == 12
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 12


def test_sixteen_tokens_where_nothing_is_said(lab):
    assert lab.client.completions.create(model=lab.base, prompt=PROMPT, seed=1).usage.completion_tokens <= 16


def test_every_form_of_prompt(lab):
    tokens = lab.tokenizer.encode(PROMPT)
    other = lab.tokenizer.encode("Pig Latin")
    one = complete(lab).choices[0].text
    assert complete(lab, prompt=tokens).choices[0].text == one
    both = complete(lab, prompt=[PROMPT, "Pig Latin"])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == one
    assert both.usage.prompt_tokens == len(tokens) + len(other)
    assert [c.text for c in complete(lab, prompt=[tokens, other]).choices] == [c.text for c in both.choices]


def test_n_texts_with_a_seed_differ_and_come_again(lab):
    first = complete(lab, prompt=[PROMPT, "Pig"], n=3, seed=7, temperature=1)
    again = complete(lab, prompt=[PROMPT, "Pig"], n=3, seed=7, temperature=1)
    other = complete(lab, prompt=[PROMPT, "Pig"], n=3, seed=8, temperature=1)
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == list(range(6))
    assert len(set(texts)) == 6
    assert [choice.text for choice in again.choices] == texts
    assert [choice.text for choice in other.choices] != texts
    assert complete(lab, n=3, seed=7, temperature=1).choices[1].text == texts[1]


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(lab):
    whole = complete(lab, model="pig", max_tokens=8).choices[0].text
    assert " jumps" in whole
    for stop in (" jumps", ["nothing", "umps ov"], [*"ABCDEFGH", " jumps"]):
        choice = complete(lab, model="pig", stop=stop).choices[0]
        assert choice.text == whole[: whole.index(stop if isinstance(stop, str) else stop[-1])]
        assert choice.finish_reason == "stop"


def test_the_end_token_ends_the_text_beside_stop_strings(lab):
    drawn = lab.sample(PROMPT)
    end = int(drawn.tokens[5])
    length = next(i for i, token in enumerate(drawn.tokens) if token == end) + 1
    base = lab.running.engine.base
    object.__setattr__(base, "eos_ids", (*base.eos_ids, end))
    try:
        completion = complete(lab, stop="never said")
    finally:
        object.__setattr__(base, "eos_ids", base.eos_ids[:-1])
    assert completion.usage.completion_tokens == length
    assert completion.choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_engine(lab):
    drawn = lab.sample(PROMPT)
    choice = complete(lab, logprobs=2).choices[0]
    count = len(choice.logprobs.tokens)
    assert choice.logprobs.token_logprobs == pytest.approx(drawn.logprobs[:count].tolist(), abs=1e-5)
    for i, (token, logprob) in enumerate(zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, strict=True)):
        assert choice.logprobs.top_logprobs[i][token] == pytest.approx(logprob, abs=1e-5)
        assert sorted(choice.logprobs.top_logprobs[i].values())[-2:] == pytest.approx(
            sorted(drawn.topk_logprobs.logprobs[i].tolist()), abs=1e-5
        )
    assert complete(lab, logprobs=0).choices[0].logprobs.top_logprobs is None
    assert complete(lab).choices[0].logprobs is None


def test_offsets_point_into_the_text(lab):
    choice = complete(lab, model="pig", logprobs=0).choices[0]
    starts = [*choice.logprobs.text_offset, len(choice.text)]
    assert [choice.text[a:b] for a, b in pairwise(starts)] == choice.logprobs.tokens


def test_echo_scores_the_prompt(lab):
    plain = complete(lab, logprobs=1).choices[0]
    choice = complete(lab, echo=True, logprobs=1).choices[0]
    length = len(lab.tokenizer.encode(PROMPT))
    assert choice.text == PROMPT + plain.text
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.token_logprobs[length:] == pytest.approx(plain.logprobs.token_logprobs, abs=1e-4)
    assert choice.logprobs.text_offset[length:] == [len(PROMPT) + offset for offset in plain.logprobs.text_offset]
    assert "".join(choice.logprobs.tokens[:length]) == PROMPT

    scored = complete(lab, prompt=choice.text, echo=True, logprobs=0, max_tokens=0).choices[0]
    assert (scored.text, scored.finish_reason) == (choice.text, "length")


def test_scoring_a_text_is_scoring_its_tokens(lab):
    """As evaluation harnesses do: no token is drawn, the logprob of each of the prompt's is asked for."""
    completion = complete(lab, echo=True, logprobs=1, max_tokens=0)
    reference = lab.sample(PROMPT)
    longer = [*lab.tokenizer.encode(PROMPT), *reference.tokens.tolist()]
    scored = complete(lab, prompt=longer, echo=True, logprobs=0, max_tokens=0)
    assert completion.usage.completion_tokens == 0
    assert len(completion.choices[0].logprobs.tokens) == completion.usage.prompt_tokens
    drawn = scored.choices[0].logprobs.token_logprobs[completion.usage.prompt_tokens :]
    assert drawn == pytest.approx(reference.logprobs.tolist(), abs=1e-4)


def test_many_at_once_through_the_async_client(lab):
    async def all_of_them() -> list[str]:
        async with lab.async_client as client:
            calls = [
                client.completions.create(model=lab.base, prompt=PROMPT, max_tokens=8, seed=seed) for seed in range(12)
            ]
            return [completion.choices[0].text for completion in await asyncio.gather(*calls)]

    texts = asyncio.run(all_of_them())
    assert len(set(texts)) > 6
    assert texts[3] == complete(lab, max_tokens=8, temperature=1, seed=3).choices[0].text


def test_the_likeliest_token_alone_is_greedy(lab):
    assert complete(lab).choices[0].text == complete(lab, extra_body={"top_k": 1}, temperature=1).choices[0].text
    assert np.isfinite(complete(lab, logprobs=1, top_p=0.5, temperature=2).choices[0].logprobs.token_logprobs).all()


REFUSED = {
    "suffix": {"suffix": "!"},
    "best_of": {"best_of": 3},
    "logit_bias": {"logit_bias": {"5": 10}},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 1},
    "min_p": {"extra_body": {"min_p": 0.1}},
    "repetition_penalty": {"extra_body": {"repetition_penalty": 1.2}},
    "prompt": {"prompt": []},
    "n": {"n": 0},
    "logprobs": {"logprobs": 21},
    "temperature": {"temperature": "hot"},
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_not_served_is_refused_by_name(lab, field):
    with pytest.raises(openai.BadRequestError, match=field) as refused:
        complete(lab, **REFUSED[field])
    assert refused.value.param == field
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": {"text": "x"}}, "expected a text, a list of texts"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": [5, 10**6]}, "outside the vocabulary"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 10**6}, "maximum context length is 512 tokens"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 2}, "top_p is 2"),
        ({"stop": ""}, "empty string"),
        ({"n": 10**9}, "num_samples"),
    ],
)
def test_bad_values_are_explained(lab, body, message):
    with pytest.raises(openai.BadRequestError, match=message):
        complete(lab, **body)


def test_what_changes_nothing_is_taken(lab):
    harmless = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "user": "me"}
    assert complete(lab, **harmless).choices[0].text == complete(lab).choices[0].text
