"""Streams: the same texts, in pieces, as they are drawn; and what happens where one is cut off."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import replace

import httpx
import openai
import pytest

from tests.models.tiny import make_tokenizer
from tests.server.fake_engine import ENDLESS
from txlab.engine.requests import RequestError, Sample

PROMPT = "The quick brown"
HELLO = [{"role": "user", "content": "Say hello."}]


def complete(lab, **body):
    body = {"model": lab.base, "prompt": PROMPT, "max_tokens": 12} | body
    return lab.client.completions.create(**body)


def chat(lab, **body):
    body = {"model": lab.base, "messages": HELLO, "max_tokens": 12} | body
    return lab.client.chat.completions.create(**body)


@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_many_texts_make_what_comes_at_once(lab, seed):
    body = {"prompt": [PROMPT, "Pig"], "n": 3, "seed": seed, "max_tokens": 20, "stop": ["a", "qu"]}
    texts, ends = defaultdict(str), {}
    for event in complete(lab, stream=True, **body):
        assert event.object == "text_completion"
        for choice in event.choices:
            assert choice.index not in ends
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    whole = complete(lab, **body).choices
    assert [texts[choice.index] for choice in whole] == [choice.text for choice in whole]
    assert ends == {choice.index: choice.finish_reason for choice in whole}
    assert {"stop"} <= set(ends.values())


@pytest.mark.parametrize("seed", range(3))
def test_a_chat_in_pieces(lab, seed):
    body = {"n": 2, "seed": seed, "logprobs": True}
    texts, logprobs, roles = defaultdict(str), defaultdict(list), {}
    for event in chat(lab, stream=True, **body):
        for choice in event.choices:
            roles.setdefault(choice.index, choice.delta.role)
            texts[choice.index] += choice.delta.content or ""
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    whole = chat(lab, **body).choices
    assert roles == {0: "assistant", 1: "assistant"}
    assert [texts[choice.index] for choice in whole] == [choice.message.content for choice in whole]
    assert [[token.token for token in logprobs[choice.index]] for choice in whole] == [
        [token.token for token in choice.logprobs.content] for choice in whole
    ]


def test_pieces_come_while_the_text_is_drawn(lab):
    events = list(chat(lab, model="pig", messages=[{"role": "user", "content": PROMPT}], max_tokens=40, stream=True))
    assert len(events) > 5
    assert len({event.id for event in events}) == 1


def test_tokens_are_counted_where_that_is_asked_for(lab):
    for call in (complete, chat):
        events = list(call(lab, stream=True, seed=1, stream_options={"include_usage": True}))
        assert events[-1].choices == []
        assert events[-1].usage == call(lab, seed=1).usage
        assert not any(event.usage for event in events[:-1])
        assert not any(event.usage for event in call(lab, stream=True, seed=1))


@pytest.mark.parametrize("body", [{"echo": True}, {"logprobs": 2}, {"echo": True, "logprobs": 2}])
def test_echo_and_likeliest_tokens_come_with_the_end(lab, body):
    body = body | {"temperature": 0}
    events = [choice for event in complete(lab, stream=True, **body) for choice in event.choices]
    whole = complete(lab, **body).choices[0]
    assert [event.text for event in events] == [whole.text]
    assert events[0].logprobs == whole.logprobs


def test_the_async_client_streams(lab):
    async def read() -> str:
        async with lab.async_client as client:
            stream = await client.completions.create(
                model=lab.base, prompt=PROMPT, max_tokens=12, temperature=0, stream=True
            )
            return "".join([event.choices[0].text async for event in stream])

    assert asyncio.run(read()) == complete(lab, temperature=0).choices[0].text


def test_the_helper_of_the_official_client(lab):
    with lab.client.chat.completions.stream(model=lab.base, messages=HELLO, max_tokens=12, temperature=0) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == chat(lab, temperature=0).choices[0].message.content


def test_the_form_of_the_events(lab):
    body = {"model": lab.base, "messages": HELLO, "max_tokens": 3, "stream": True}
    headers = {"Authorization": f"Bearer {lab.running.key}"}
    answer = httpx.post(f"{lab.running.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, end, rest = answer.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    parsed = [json.loads(event.removeprefix("data: ")) for event in events]
    assert parsed[0]["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    assert parsed[-1]["choices"][0]["finish_reason"] in ("stop", "length")


# --------------------------------------------------------------- cut off, with a fake engine


@pytest.fixture
def talking(engine, server):
    """The fake engine, which samples some prompts for ever, with what text needs."""
    tokenizer = make_tokenizer()
    engine.base.tokenizer, engine.base.eos_ids, engine.base.config.max_context = tokenizer, (), 4096
    engine.limits = replace(engine.limits, vocab_size=len(tokenizer))
    return server


def client_of(running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_stops_the_sampling(talking, engine, stream):
    body = {"model": "fake/model", "prompt": [[ENDLESS], [ENDLESS, 1]], "stream": stream}
    headers = {"Authorization": f"Bearer {talking.key}"}
    with httpx.Client(timeout=1 if not stream else 20) as client:
        if stream:
            with client.stream("POST", f"{talking.url}/v1/completions", json=body, headers=headers):
                wait_for(lambda: len(engine.endless) == 2)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{talking.url}/v1/completions", json=body, headers=headers)
            assert sum(isinstance(request, Sample) for request in engine.log) == 2
    wait_for(lambda: not engine.endless)


def test_a_failure_on_the_way_is_an_event(talking, engine):
    engine.broken = (Sample,)
    stream = client_of(talking).chat.completions.create(model="fake/model", messages=HELLO, max_tokens=5, stream=True)
    with pytest.raises(openai.APIError, match="out of memory") as failed:
        list(stream)
    assert failed.value.type == "server_error"
    with pytest.raises(openai.BadRequestError, match="out of memory"):
        client_of(talking).completions.create(model="fake/model", prompt="x")
    engine.broken = ()
    assert client_of(talking).completions.create(model="fake/model", prompt="x").choices


def test_one_of_many_that_fails_stops_the_others(talking, engine, monkeypatch):
    execute = engine._execute

    def failing(request):
        if isinstance(request, Sample):
            raise RequestError("only this one")
        return execute(request)

    monkeypatch.setattr(engine, "_execute", failing)
    with pytest.raises(openai.APIError, match="only this one"):
        client_of(talking).completions.create(model="fake/model", prompt=[[ENDLESS], [5]])
    wait_for(lambda: not engine.endless)


def test_a_stream_is_never_begun_for_what_is_refused(talking):
    with pytest.raises(openai.NotFoundError):
        client_of(talking).completions.create(model="nobody", prompt="x", stream=True)
    with pytest.raises(openai.BadRequestError):
        client_of(talking).completions.create(model="fake/model", prompt="x", max_tokens=10**6, stream=True)
