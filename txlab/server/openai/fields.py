"""Fields of OpenAI's and vLLM's requests that this server cannot serve, with the values of each that ask for nothing.

A field is honoured, has one of these values, or is refused by name: what a request says is never ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from txlab.server.errors import ApiError

_TOOLS = "leave it out; put what the model should know of tools into its messages"
_FREE = "leave it out: tokens are drawn freely, so check the text and draw again"
_TEXT = "leave it out: this server draws text"
_PLAIN = "leave it out: every token is weighed as the model weighs it, by temperature, top_k and top_p"
_LAYOUT = "leave it out: the model's own chat template lays a conversation out; completions take any other text"


@dataclass(frozen=True, slots=True)
class Unserved:
    """A field that is refused but for its ``neutral`` values, which ask for nothing; so does null."""

    neutral: tuple[Any, ...] = ()
    advice: str = "leave it out"

    def refusal(self, name: str) -> str:
        """Message to the client."""
        also = f"; or give {' or '.join(map(repr, self.neutral))}" if self.neutral else ""
        return f"{name} is not supported by this server: {self.advice}{also}"

    @property
    def schema(self) -> dict[str, Any]:
        """Its place in the OpenAPI document."""
        told = f"Not served: {self.advice}." if self.neutral else f"Refused: {self.advice}."
        return {"enum": [None, *self.neutral], "default": None, "description": told}


DRAWING: Mapping[str, Unserved] = {  # of completions and of chats
    "allowed_token_ids": Unserved(([],), _FREE),
    "bad_words": Unserved(([],), _FREE),
    "cache_salt": Unserved(),
    "detokenize": Unserved((True,)),
    "early_stopping": Unserved((False,), _PLAIN),
    "frequency_penalty": Unserved((0,), _PLAIN),
    "guided_choice": Unserved(([],), _FREE),
    "guided_decoding_backend": Unserved(advice=_FREE),
    "guided_grammar": Unserved(advice=_FREE),
    "guided_json": Unserved(advice=_FREE),
    "guided_json_object": Unserved((False,), _FREE),
    "guided_regex": Unserved(advice=_FREE),
    "guided_whitespace_pattern": Unserved(advice=_FREE),
    "include_stop_str_in_output": Unserved((False,), "leave it out: a text ends before its stop string"),
    "kv_transfer_params": Unserved(({},)),
    "length_penalty": Unserved((1,), _PLAIN),
    "logit_bias": Unserved(({},), _PLAIN),
    "logits_processors": Unserved(([],), _PLAIN),
    "metadata": Unserved(({},), "leave it out: nothing is stored of it"),
    "min_p": Unserved((0,), _PLAIN),
    "min_tokens": Unserved((0,), "leave it out; ignore_eos draws on past the model's own end"),
    "moderation": Unserved(),
    "presence_penalty": Unserved((0,), _PLAIN),
    "priority": Unserved((0,), "leave it out: all adapters have fair shares"),
    "prompt_cache_options": Unserved(({},)),
    "prompt_cache_retention": Unserved(("in_memory",)),
    "prompt_logprobs": Unserved(advice="leave it out; completions with echo and logprobs score the prompt"),
    "repetition_penalty": Unserved((1,), _PLAIN),
    "request_id": Unserved(),
    "response_format": Unserved(({"type": "text"},), _FREE),
    "return_token_ids": Unserved((False,)),
    "return_tokens_as_token_ids": Unserved((False,)),
    "service_tier": Unserved(("auto", "default")),
    "skip_special_tokens": Unserved((True,), "leave it out: special tokens are no text; logprobs name them"),
    "spaces_between_special_tokens": Unserved((True,)),
    "store": Unserved((False,), "leave it out: answers are not stored"),
    "structured_outputs": Unserved(({},), _FREE),
    "truncate_prompt_tokens": Unserved(advice="leave it out, and send the part of the prompt that counts"),
    "use_beam_search": Unserved((False,), _PLAIN),
    "vllm_xargs": Unserved(({},)),
}

COMPLETIONS: Mapping[str, Unserved] = {
    **DRAWING,
    "max_completion_tokens": Unserved(advice="leave it out; give max_tokens"),
    "prompt_embeds": Unserved(advice="leave it out; give text or token ids"),
    "suffix": Unserved(("",), "leave it out: text is drawn forward only"),
}

CHATS: Mapping[str, Unserved] = {
    **DRAWING,
    "add_special_tokens": Unserved((False,), _LAYOUT),
    "audio": Unserved(advice=_TEXT),
    "chat_template": Unserved(advice=_LAYOUT),
    "documents": Unserved(([],), "leave it out; put the documents into the messages"),
    "echo": Unserved((False,), "leave it out; continue_final_message goes on with the last message"),
    "function_call": Unserved(("none", "auto"), _TOOLS),
    "functions": Unserved(([],), _TOOLS),
    "include_reasoning": Unserved((True,), "leave it out: an answer is told as it was drawn"),
    "mm_processor_kwargs": Unserved(({},), _TEXT),
    "modalities": Unserved((["text"],), _TEXT),
    "parallel_tool_calls": Unserved((True, False), _TOOLS),
    "prediction": Unserved(),
    "reasoning_effort": Unserved(advice="leave it out; chat_template_kwargs say what the model's template understands"),
    "tools": Unserved(([],), _TOOLS),
    "tool_choice": Unserved(("none", "auto"), _TOOLS),
    "verbosity": Unserved(("medium",), "leave it out; say in the messages how long the answer should be"),
    "web_search_options": Unserved(advice=_TEXT),
}


def served_part(given: Mapping[str, Any], served: Collection[str], unserved: Mapping[str, Unserved]) -> dict[str, Any]:
    """The fields of a request that are ``served``. Raises ApiError for any other that asks for something."""
    asked = [name for name in dict.fromkeys((*unserved, *given)) if name in given and name not in served]
    for name in asked:
        known, value = unserved.get(name), given[name]
        if known is None:
            raise ApiError(400, f"{name} is unknown to this server: leave it out", name, "unknown_parameter")
        if value is not None and value not in known.neutral:
            raise ApiError(400, known.refusal(name), name, "unsupported_parameter")
    return {name: value for name, value in given.items() if name in served}
