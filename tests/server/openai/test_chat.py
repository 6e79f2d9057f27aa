"""Chat completions through the official client."""

from __future__ import annotations

import asyncio

import openai
import pytest

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]


def chat(lab, **body):
    body = {"model": lab.base, "messages": HELLO, "max_tokens": 10, "temperature": 0} | body
    return lab.client.chat.completions.create(**body)


def laid_out(lab, messages=HELLO, **options) -> str:
    return lab.tokenizer.apply_chat_template(messages, tokenize=False, **({"add_generation_prompt": True} | options))


def test_the_answer_continues_the_models_own_layout(lab):
    drawn = lab.sample(laid_out(lab), max_tokens=10)
    answer = chat(lab)
    assert answer.choices[0].message.content == lab.tokenizer.decode(drawn.tokens, skip_special_tokens=True)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert (answer.object, answer.model) == ("chat.completion", lab.base)
    assert answer.usage.prompt_tokens == len(lab.tokenizer.encode(laid_out(lab)))


def test_text_parts_and_developers_are_plain_turns(lab):
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]},
    ]
    assert chat(lab, messages=parts).choices[0].message.content == chat(lab).choices[0].message.content


def test_the_final_message_is_continued(lab):
    messages = [*HELLO, {"role": "assistant", "content": "The quick"}]
    prompt = laid_out(lab, messages, add_generation_prompt=False, continue_final_message=True)
    assert prompt.endswith("The quick")
    drawn = lab.sample(prompt, max_tokens=10)
    answer = chat(lab, messages=messages, extra_body={"continue_final_message": True})
    assert answer.choices[0].message.content == lab.tokenizer.decode(drawn.tokens, skip_special_tokens=True)


def test_an_answer_may_fill_the_context(lab):
    answer = chat(lab, max_tokens=openai.omit, temperature=1, seed=3)
    choice, context = answer.choices[0], lab.running.engine.limits.max_context
    assert choice.finish_reason == "stop" or answer.usage.total_tokens == context
    assert chat(lab, max_tokens=openai.omit, max_completion_tokens=3).usage.completion_tokens == 3


def test_answers_with_a_seed(lab):
    first, again = (chat(lab, n=4, seed=5, temperature=1) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 4
    assert [choice.message.content for choice in again.choices] == texts


def test_logprobs_name_tokens_and_bytes(lab):
    drawn = lab.sample(laid_out(lab), max_tokens=10)
    choice = chat(lab, logprobs=True, top_logprobs=2).choices[0]
    assert choice.logprobs.content
    for i, entry in enumerate(choice.logprobs.content):
        assert entry.logprob == pytest.approx(float(drawn.logprobs[i]), abs=1e-5)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            drawn.topk_logprobs.logprobs[i].tolist(), abs=1e-5
        )
        assert entry.top_logprobs[0].token == entry.token  # greedy
    special = lab.tokenizer.all_special_tokens
    spoken = (bytes(entry.bytes) for entry in choice.logprobs.content if entry.token not in special)
    assert choice.message.content.encode().startswith(b"".join(spoken).decode(errors="replace").encode()[:-3])
    assert chat(lab, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(lab).choices[0].logprobs is None


def test_the_async_client(lab):
    async def ask() -> str:
        async with lab.async_client as client:
            answer = await client.chat.completions.create(model=lab.base, messages=HELLO, max_tokens=10, temperature=0)
            return answer.choices[0].message.content

    assert asyncio.run(ask()) == chat(lab).choices[0].message.content


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"messages": []}, "messages", "messages is empty"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages", "role"),
        ({"messages": [IMAGE]}, "messages", r"messages\[0\].content\[0\] is 'image_url'"),
        ({"extra_body": {"continue_final_message": True}}, "messages", "assistant's"),
        ({"tools": [TOOL]}, "tools", "tools is not supported"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "{'type': 'text'}"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"modalities": ["audio"]}, "modalities", "modalities"),
    ],
)
def test_what_is_not_served_is_refused_by_name(lab, body, field, message):
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        chat(lab, **body)
    assert refused.value.param == field


def test_what_the_template_refuses_is_told(lab, monkeypatch):
    monkeypatch.setattr(lab.tokenizer, "chat_template", "{{ raise_exception('no system turn here') }}")
    with pytest.raises(openai.BadRequestError, match="no system turn here"):
        chat(lab)
    monkeypatch.setattr(lab.tokenizer, "chat_template", None)
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        chat(lab)
