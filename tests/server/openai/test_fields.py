"""Every field of a request is honoured or refused by name, as real clients need it; none is ignored."""

from __future__ import annotations

from collections import defaultdict

import httpx
import openai
import pytest

PROMPT = "The quick brown"
HELLO = [{"role": "user", "content": "Say hello."}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def post(lab, route: str, **body) -> httpx.Response:
    headers = {"Authorization": f"Bearer {lab.running.key}"}
    own = {"prompt": PROMPT} if route == "completions" else {"messages": HELLO}
    body = {"model": lab.base, "max_tokens": 8, "temperature": 0} | own | body
    return httpx.post(f"{lab.running.url}/v1/{route}", json=body, headers=headers, timeout=60)


def told(answer: httpx.Response) -> str:
    """The text of the first choice."""
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BOTH = ("completions", "chat/completions")

REFUSED = {  # a value that asks for something, and where known what changes nothing
    "allowed_token_ids": ([5], []),
    "bad_words": (["x"], []),
    "cache_salt": ("s", None),
    "frequency_penalty": (0.5, 0),
    "guided_choice": (["a", "b"], None),
    "guided_grammar": ("root ::= x", None),
    "guided_json": ({}, None),
    "guided_regex": ("a+", None),
    "include_stop_str_in_output": (True, False),
    "length_penalty": (2.0, 1.0),
    "logit_bias": ({"5": 10}, {}),
    "logits_processors": (["x"], []),
    "metadata": ({"a": "b"}, {}),
    "min_p": (0.1, 0.0),
    "min_tokens": (3, 0),
    "presence_penalty": (-0.5, 0.0),
    "priority": (1, 0),
    "prompt_logprobs": (1, None),
    "repetition_penalty": (1.2, 1.0),
    "response_format": ({"type": "json_object"}, {"type": "text"}),
    "return_token_ids": (True, False),
    "return_tokens_as_token_ids": (True, False),
    "service_tier": ("flex", "auto"),
    "skip_special_tokens": (False, True),
    "spaces_between_special_tokens": (False, True),
    "store": (True, False),
    "structured_outputs": ({"json": {}}, None),
    "truncate_prompt_tokens": (2, None),
    "use_beam_search": (True, False),
}
REFUSED_CHATS = {
    "add_special_tokens": (True, False),
    "audio": ({"voice": "alloy"}, None),
    "chat_template": ("{{ messages }}", None),
    "documents": ([{"text": "x"}], []),
    "echo": (True, False),
    "function_call": ({"name": "f"}, "none"),
    "functions": ([{"name": "f"}], []),
    "modalities": (["text", "audio"], ["text"]),
    "prediction": ({"type": "content", "content": "x"}, None),
    "reasoning_effort": ("low", None),
    "tool_choice": ("required", "auto"),
    "tools": ([TOOL], []),
    "verbosity": ("low", "medium"),
    "web_search_options": ({}, None),
}
REFUSED_COMPLETIONS = {"suffix": ("!", ""), "best_of": (3, 1), "max_completion_tokens": (3, None)}
CASES = [
    *((route, field) for route in BOTH for field in REFUSED),
    *(("chat/completions", field) for field in REFUSED_CHATS),
    *(("completions", field) for field in REFUSED_COMPLETIONS),
]


@pytest.mark.parametrize(("route", "field"), CASES)
def test_what_is_not_served_is_refused_by_name_and_what_asks_for_nothing_is_taken(lab, route, field):
    asks, neutral = (REFUSED | REFUSED_CHATS | REFUSED_COMPLETIONS)[field]
    refused = post(lab, route, **{field: asks})
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert field in error["message"]
    for nothing in (neutral, None):
        assert told(post(lab, route, **{field: nothing})) == told(post(lab, route))


@pytest.mark.parametrize("route", BOTH)
def test_an_unknown_field_is_refused_by_name(lab, route):
    error = post(lab, route, temprature=0.5).json()["error"]
    assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
    assert "temprature is unknown to this server" in error["message"]
    error = post(lab, route, stream=True, stream_options={"include_obfuscation": True}).json()["error"]
    assert error["param"] == "include_obfuscation"


@pytest.mark.parametrize("route", BOTH)
def test_who_asks_changes_nothing(lab, route):
    labels = {"user": "me", "safety_identifier": "me", "prompt_cache_key": "mine"}
    assert told(post(lab, route, **labels)) == told(post(lab, route))


@pytest.mark.parametrize("route", BOTH)
def test_stream_options_need_a_stream(lab, route):
    for stream in ({}, {"stream": False}):
        refused = post(lab, route, stream_options={"include_usage": True}, **stream)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "stream_options"


# ------------------------------------------------------------------------------------- what is honoured


@pytest.mark.parametrize("off", [0, -1, None])
def test_no_top_k_is_said_in_three_ways(lab, off):
    free = told(post(lab, "completions", temperature=1, seed=4))
    assert told(post(lab, "completions", temperature=1, seed=4, top_k=off)) == free


def test_max_completion_tokens_goes_before_max_tokens(lab):
    both = {"max_tokens": 9, "max_completion_tokens": 3}
    assert post(lab, "chat/completions", **both).json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_token_ends_the_text_and_is_no_part_of_it(lab, stream):
    drawn = lab.sample(PROMPT, max_tokens=8).tokens.tolist()
    end = next(token for i, token in enumerate(drawn) if i > 1 and token not in lab.tokenizer.all_special_ids)
    before = drawn[: drawn.index(end)]
    body = {"model": lab.base, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 0}
    client = lab.client.completions
    answer = client.create(**body, stream=stream, extra_body={"stop_token_ids": [end]})
    choices = [event.choices[0] for event in answer] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == lab.tokenizer.decode(before, skip_special_tokens=True)
    assert choices[-1].finish_reason == "stop"
    assert sum(len(choice.logprobs.tokens) for choice in choices if choice.logprobs) <= len(before)
    if not stream:
        assert answer.usage.completion_tokens == len(before) + 1


def test_a_stop_token_of_another_vocabulary_is_refused(lab):
    refused = post(lab, "completions", stop_token_ids=[10**6])
    assert refused.status_code == 400
    assert "stop token 1000000 is outside" in refused.json()["error"]["message"]


def test_ignore_eos_draws_on(lab):
    drawn = lab.sample(PROMPT, max_tokens=8)
    base = lab.running.engine.base
    object.__setattr__(base, "eos_ids", (*base.eos_ids, int(drawn.tokens[3])))
    try:
        ended = post(lab, "completions").json()
        went_on = post(lab, "completions", ignore_eos=True).json()
    finally:
        object.__setattr__(base, "eos_ids", base.eos_ids[:-1])
    assert ended["usage"]["completion_tokens"] <= 4
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert went_on["usage"]["completion_tokens"] == 8
    assert went_on["choices"][0]["text"] == lab.tokenizer.decode(drawn.tokens, skip_special_tokens=True)


def test_a_prompt_without_the_tokenizers_own_tokens(lab, monkeypatch):
    asked = defaultdict(int)
    encode = lab.tokenizer.encode

    def watched(text, add_special_tokens=True):
        asked[add_special_tokens] += 1
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(lab.tokenizer, "encode", watched)
    post(lab, "completions")
    post(lab, "completions", add_special_tokens=False)
    assert asked == {True: 1, False: 1}


# ------------------------------------------------------------------------------------- the context


def too_long(lab, call) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as refused:
        call()
    error = refused.value
    assert (error.code, error.type, error.status_code) == ("context_length_exceeded", "invalid_request_error", 400)
    assert "context_length_exceeded" in str(error), "LangChain looks there"
    assert f"This model's maximum context length is {lab.running.engine.limits.max_context} tokens." in error.message
    return error


def test_context_overflow_is_said_as_clients_look_for_it(lab):
    completions, chats = lab.client.completions, lab.client.chat.completions
    error = too_long(lab, lambda: completions.create(model=lab.base, prompt=[5] * 600, max_tokens=4))
    assert "you requested 604 tokens (600 in the prompt, 4 in the completion)" in error.message
    assert error.param == "prompt"
    too_long(lab, lambda: completions.create(model=lab.base, prompt=PROMPT, max_tokens=510, stream=True))
    long = [{"role": "user", "content": PROMPT * 300}]
    error = too_long(lab, lambda: chats.create(model=lab.base, messages=long))
    assert "your messages resulted in" in error.message
    assert error.param == "messages"
    error = too_long(lab, lambda: chats.create(model=lab.base, messages=HELLO, max_completion_tokens=511))
    assert "511 in the completion" in error.message


# ------------------------------------------------------------------------------------- conversations

PLAIN = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NAMES = "{% for m in messages %}{{ m.role }}{% if m.name %} {{ m['name'] }}{% endif %}: {{ m.content }}\n{% endfor %}"
DUMPS = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{{ mood }}"


@pytest.mark.parametrize(
    ("template", "message", "problem"),
    [
        (None, {"role": "function", "name": "f", "content": "4"}, r"messages\[0\].name is not read"),
        (None, {"role": "function", "content": "4"}, None),
        (PLAIN, {"role": "function", "content": "4"}, r"messages\[0\]: .* leaves out a function message"),
        (PLAIN, {"role": "tool", "content": "4"}, r"messages\[0\]: .* leaves out a tool message"),
        (PLAIN, {"role": "system", "content": "4"}, r"messages\[0\]: .* leaves out a system message"),
        (NAMES, {"role": "function", "name": "f", "content": "4"}, None),
        (DUMPS, {"role": "tool", "tool_call_id": "c", "content": "4"}, None),
        (NAMES, {"role": "tool", "tool_call_id": "c", "content": "4"}, None),  # most templates go by the order
        (NAMES, {"role": "assistant", "content": "4", "tool_calls": [CALL]}, r"messages\[0\].tool_calls is not read"),
        (PLAIN, {"role": "assistant", "content": None, "refusal": None, "tool_calls": [], "audio": None}, None),
        (
            PLAIN,
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            r"messages\[0\].content\[0\].cache_control",
        ),
    ],
)
def test_a_message_is_read_by_the_template_or_refused(lab, monkeypatch, template, message, problem):
    if template is not None:
        monkeypatch.setattr(lab.tokenizer, "chat_template", template)
    ask = {"model": lab.base, "messages": [message, *HELLO], "max_tokens": 4}
    if problem is None:
        assert lab.client.chat.completions.create(**ask).choices
    else:
        with pytest.raises(openai.BadRequestError, match=problem) as refused:
            lab.client.chat.completions.create(**ask)
        assert refused.value.param == "messages"


def test_variables_of_the_template(lab, monkeypatch):
    monkeypatch.setattr(lab.tokenizer, "chat_template", DUMPS)
    plain, moody = (
        post(lab, "chat/completions", chat_template_kwargs=given).json()["usage"]["prompt_tokens"]
        for given in ({}, {"mood": "very merry indeed"})
    )
    assert moody > plain
    for unknown in ("weather", "tokenize", "messages", "add_generation_prompt"):
        refused = post(lab, "chat/completions", chat_template_kwargs={unknown: False})
        assert refused.status_code == 400
        assert f"chat_template_kwargs.{unknown} is no variable" in refused.json()["error"]["message"]


def test_an_answer_may_begin_without_a_header(lab):
    def prompt_tokens(**body) -> int:
        return post(lab, "chat/completions", **body).json()["usage"]["prompt_tokens"]

    def laid_out(opens: bool) -> int:
        return len(lab.tokenizer.apply_chat_template(HELLO, add_generation_prompt=opens, return_dict=False))

    assert laid_out(True) > laid_out(False)
    assert prompt_tokens() == prompt_tokens(add_generation_prompt=True) == laid_out(True)
    assert prompt_tokens(add_generation_prompt=False) == laid_out(False)
    go_on = {"messages": [*HELLO, {"role": "assistant", "content": "He"}], "continue_final_message": True}
    assert post(lab, "chat/completions", **go_on, add_generation_prompt=False).status_code == 200
    refused = post(lab, "chat/completions", **go_on, add_generation_prompt=True)
    assert refused.json()["error"]["param"] == "add_generation_prompt"
