"""What a request must fulfil before it may queue: cheap checks whose messages name the datum and the field."""

from __future__ import annotations

import math

import numpy as np

from txlab.engine.losses import LOSSES, Loss
from txlab.engine.requests import (
    AdamParams,
    CreateAdapter,
    Datum,
    ForwardBackward,
    ImportAdapter,
    Limits,
    LoadSnapshot,
    OptimStep,
    Request,
    RequestError,
    Sample,
    SamplingParams,
)
from txlab.lora.state import LoraConfig


def validate(request: Request, limits: Limits) -> None:
    """Raise RequestError (category "user") where ``request`` asks for what cannot be done."""
    match request:
        case CreateAdapter(lora=lora):
            _check_lora(lora, limits)
        case ImportAdapter(state=state) | LoadSnapshot(state=state):
            _check_lora(state.lora, limits)
        case ForwardBackward():
            _check_pass(request, limits)
        case OptimStep(adam=adam):
            _check_adam(adam)
        case Sample():
            _check_sample(request, limits)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RequestError(message)


def _check_lora(lora: LoraConfig, limits: Limits) -> None:
    _require(1 <= lora.rank <= limits.max_rank, f"lora rank {lora.rank} is outside 1 … {limits.max_rank}")
    _require(
        lora.train_attn or lora.train_mlp or lora.train_unembed,
        "nothing to train: set at least one of train_attn, train_mlp, train_unembed",
    )


def _check_pass(request: ForwardBackward, limits: Limits) -> None:
    loss = LOSSES.get(request.loss)
    if loss is None:
        raise RequestError(f"unknown loss_fn {request.loss!r}; this server has {', '.join(LOSSES)}")
    _check_options(loss, request)
    _require(len(request.data) > 0, "data is empty: a pass needs at least one datum")
    for index, datum in enumerate(request.data):
        _check_datum(datum, index, loss, limits)


def _check_options(loss: Loss, request: ForwardBackward) -> None:
    for name, value in request.loss_config.items():
        _require(
            name in loss.options,
            f"loss_fn_config has {name!r}, unknown to {loss.name}, which takes {', '.join(loss.options) or 'none'}",
        )
        _require(
            isinstance(value, int | float) and math.isfinite(value),
            f"loss_fn_config[{name!r}] is {value!r}: expected a finite number",
        )
    for name, default in loss.options.items():
        _require(default is not None or name in request.loss_config, f"{loss.name} needs loss_fn_config[{name!r}]")


def _check_datum(datum: Datum, index: int, loss: Loss, limits: Limits) -> None:
    where = f"data[{index}]"
    length = len(datum.tokens)
    _require(length > 0, f"{where}.model_input is empty: expected at least one token")
    _require(
        length <= limits.max_context,
        f"{where}.model_input has {length} tokens; the context of this model is {limits.max_context}: split or cut it",
    )
    _check_tokens(datum.tokens, f"{where}.model_input", limits)
    _require(
        datum.targets.shape == datum.tokens.shape,
        f"{where}.loss_fn_inputs['target_tokens'] has shape {datum.targets.shape}, model_input has {length} tokens: "
        "expected one target per token",
    )
    _check_tokens(datum.targets, f"{where}.loss_fn_inputs['target_tokens']", limits)
    for name in loss.required:
        _require(name in datum.inputs, f"{where}.loss_fn_inputs lacks {name!r}, which {loss.name} needs")
    for name, values in datum.inputs.items():
        field = f"{where}.loss_fn_inputs[{name!r}]"
        _require(
            name in loss.inputs,
            f"{field} is not an input of {loss.name}, which reads target_tokens, {', '.join(loss.inputs)}",
        )
        _require(values.shape == (length,), f"{field} has shape {values.shape}: expected ({length},)")
        _require(bool(np.isfinite(values).all()), f"{field} holds NaN or infinity: expected finite numbers")


def _check_tokens(tokens: np.ndarray, field: str, limits: Limits) -> None:
    bad = (tokens < 0) | (tokens >= limits.vocab_size)
    if bad.any():
        at = int(bad.argmax())
        raise RequestError(
            f"{field}[{at}] is token {int(tokens[at])}, outside the vocabulary 0 … {limits.vocab_size - 1}; "
            "is this the tokenizer of another model?"
        )


def _check_adam(adam: AdamParams) -> None:
    for name in AdamParams.__dataclass_fields__:
        value = getattr(adam, name)
        _require(math.isfinite(value), f"adam_params.{name} is {value}: expected a finite number")
        _require(value >= 0, f"adam_params.{name} is {value}: expected 0 or more")
    for name in ("beta1", "beta2"):
        _require(getattr(adam, name) < 1, f"adam_params.{name} is {getattr(adam, name)}: expected less than 1")


def _check_sample(request: Sample, limits: Limits) -> None:
    length = len(request.prompt)
    _require(length > 0, "prompt is empty: expected at least one token")
    _check_tokens(request.prompt, "prompt", limits)
    _require(
        1 <= request.num_samples <= limits.max_samples,
        f"num_samples is {request.num_samples}: expected 1 … {limits.max_samples}",
    )
    _require(
        0 <= request.topk_prompt_logprobs <= limits.vocab_size,
        f"topk_prompt_logprobs is {request.topk_prompt_logprobs}: expected 0 … {limits.vocab_size}",
    )
    _check_sampling_params(request.params, limits)
    total = length + request.params.max_tokens
    _require(
        total <= limits.max_context,
        f"prompt of {length} tokens and max_tokens {request.params.max_tokens} make {total}; "
        f"the context of this model is {limits.max_context}",
    )


def _check_sampling_params(params: SamplingParams, limits: Limits) -> None:
    _require(params.max_tokens >= 1, f"max_tokens is {params.max_tokens}: expected 1 or more")
    _require(
        math.isfinite(params.temperature) and params.temperature >= 0,
        f"temperature is {params.temperature}: expected a finite number, 0 (greedy) or more",
    )
    _require(params.top_k == -1 or params.top_k >= 1, f"top_k is {params.top_k}: expected -1 (off) or 1 or more")
    _require(0 < params.top_p <= 1, f"top_p is {params.top_p}: expected more than 0 and at most 1")
    for stop in params.stop or ():
        if isinstance(stop, int):
            _require(0 <= stop < limits.vocab_size, f"stop token {stop} is outside 0 … {limits.vocab_size - 1}")
        else:
            _require(len(stop) > 0, "stop holds an empty string: every text would stop at once")
