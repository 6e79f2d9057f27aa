"""What a request must fulfil before it may queue: cheap checks whose messages name the datum and the field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from txlab.engine.losses import REFUSED, DatumLoss, Loss, Losses
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

IGNORE_INDEX = -100  # what many programs put in place of a target that shall not count
MOST_SCORES = 2**24  # numbers of one kind that a sample request may ask for: 128 MiB with their token ids
MOST_DRAWS = 2**18  # alternatives that it may ask for: each costs noise for the whole vocabulary


def validate(request: Request, limits: Limits, losses: Losses | None = None) -> None:
    """Raise RequestError (category "user") where ``request`` asks for what cannot be done.

    ``losses`` are those that a pass may name; None: the built-in ones.
    """
    match request:
        case CreateAdapter(lora=lora):
            _check_lora(lora, limits)
        case ImportAdapter(state=state) | LoadSnapshot(state=state):
            _check_lora(state.lora, limits)
        case ForwardBackward():
            _check_pass(request, limits, losses or Losses())
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


def _check_pass(request: ForwardBackward, limits: Limits, losses: Losses) -> None:
    loss = losses.get(request.loss)
    if loss is None:
        why = REFUSED.get(request.loss)
        if why is not None:
            raise RequestError(f"loss_fn {request.loss!r} is not served: {why}")
        raise RequestError(f"unknown loss_fn {request.loss!r}; this server has {', '.join(losses.names())}")
    _check_options(loss, request)
    _require(len(request.data) > 0, "data is empty: a pass needs at least one datum")
    for index, datum in enumerate(request.data):
        _check_datum(datum, f"data[{index}]", limits)
        if isinstance(loss, Loss):
            _check_inputs(datum, f"data[{index}].loss_fn_inputs", loss)
        else:
            _check_ranks(datum, f"data[{index}].loss_fn_inputs", loss)


def _check_options(loss: Loss | DatumLoss, request: ForwardBackward) -> None:
    options = loss.options if isinstance(loss, Loss) else {}
    for name, value in request.loss_config.items():
        _require(
            name in options,
            f"loss_fn_config has {name!r}, unknown to {loss.name}, which takes {', '.join(options) or 'none'}",
        )
        _require(
            isinstance(value, int | float) and math.isfinite(value),
            f"loss_fn_config[{name!r}] is {value!r}: expected a finite number",
        )
    for name, default in options.items():
        _require(default is not None or name in request.loss_config, f"{loss.name} needs loss_fn_config[{name!r}]")


def _check_datum(datum: Datum, where: str, limits: Limits) -> None:
    length = len(datum.tokens)
    _require(length > 0, f"{where}.model_input is empty: expected at least one token")
    _require(
        length <= limits.max_context,
        f"{where}.model_input has {length} tokens; the context of this model is {limits.max_context}: split or cut it",
    )
    _check_tokens(datum.tokens, f"{where}.model_input", limits)
    field, shape = f"{where}.loss_fn_inputs['target_tokens']", datum.targets.shape
    _require(
        len(shape) in (1, 2) and shape[0] == length,
        f"{field} has shape {shape}, model_input has {length} tokens: expected one target per token, or a row of them",
    )
    _require(
        len(shape) == 1 or 1 <= shape[1] <= limits.vocab_size,
        f"{field} has shape {shape}: expected 1 … {limits.vocab_size} targets per token",
    )
    _check_tokens(datum.targets, field, limits)


def _check_inputs(datum: Datum, where: str, loss: Loss) -> None:
    """Check what a traced loss reads: arrays in the shape of the targets."""
    shape = datum.targets.shape
    one = len(shape) == 1 or shape[1] == 1
    _require(
        one or loss.many_targets,
        f"{where}['target_tokens'] has shape {shape}: {loss.name} takes one target per token; cross_entropy takes more",
    )
    for name in loss.required:
        _require(name in datum.inputs, f"{where} lacks {name!r}, which {loss.name} needs")
    for name, values in datum.inputs.items():
        field = f"{where}[{name!r}]"
        _require(
            name in loss.datum_inputs,
            f"{field} is not an input of {loss.name}, which reads target_tokens, {', '.join(loss.datum_inputs)}",
        )
        fits = values.shape in ((shape[0],), (shape[0], 1)) if one else values.shape == shape
        _require(fits, f"{field} has shape {values.shape}: expected {shape}, as target_tokens")
        _check_finite(values, field)


def _check_ranks(datum: Datum, where: str, loss: DatumLoss) -> None:
    """Check what a loss of the host reads: arrays of the ranks that it names. It does not see others."""
    _require(
        datum.targets.ndim == loss.rank,
        f"{where}['target_tokens'] has shape {datum.targets.shape}: {loss.name} takes logprobs of rank {loss.rank}",
    )
    for name, rank in loss.inputs.items():
        if name == "target_tokens":
            continue
        _require(name in datum.inputs, f"{where} lacks {name!r}, which {loss.name} needs")
        values = datum.inputs[name]
        fits = values.size == 1 if rank == 0 else values.ndim == rank  # a number travels as an array of one
        _require(fits, f"{where}[{name!r}] has shape {values.shape}: {loss.name} takes rank {rank}")
        _check_finite(values, f"{where}[{name!r}]")


def _check_finite(values: np.ndarray, field: str) -> None:
    _require(bool(np.isfinite(values).all()), f"{field} holds NaN or infinity: expected finite numbers")


def _check_tokens(tokens: np.ndarray, field: str, limits: Limits) -> None:
    bad = (tokens < 0) | (tokens >= limits.vocab_size)
    if bad.any():
        at = tuple(np.argwhere(bad)[0].tolist())
        if tokens[at] == IGNORE_INDEX:
            raise RequestError(
                f"{field}[{', '.join(map(str, at))}] is {IGNORE_INDEX}, PyTorch's mark of a token to skip: "
                "use weight 0 there, with any token of the vocabulary"
            )
        raise RequestError(
            f"{field}[{', '.join(map(str, at))}] is token {int(tokens[at])}, "
            f"outside the vocabulary 0 … {limits.vocab_size - 1}; "
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
    _check_sampling_params(request.params, limits)
    total = length + request.params.max_tokens
    _require(
        total <= limits.max_context,
        f"prompt of {length} tokens and max_tokens {request.params.max_tokens} make {total}; "
        f"the context of this model is {limits.max_context}",
    )
    _check_scores(request, limits)


def _check_scores(request: Sample, limits: Limits) -> None:
    """What is asked besides the samples: within the vocabulary, of the prompt's length, and not too much of it."""
    prompt, drawn = len(request.prompt), request.num_samples * request.params.max_tokens
    _check_k("topk_prompt_logprobs", request.topk_prompt_logprobs, prompt, MOST_SCORES, limits)
    _check_k("topk_sample_logprobs", request.topk_sample_logprobs, drawn, MOST_SCORES, limits)
    _check_k("prompt_alt_tokens_k", request.prompt_alt_tokens_k, prompt, MOST_DRAWS)
    if (last_n := request.prompt_logprobs_last_n) is not None:
        _require(request.prompt_logprobs, "prompt_logprobs_last_n needs prompt_logprobs")
        _require(
            1 <= last_n < prompt,
            f"prompt_logprobs_last_n is {last_n}: expected 1 … {prompt - 1}, less than the prompt's {prompt} tokens",
        )
    if request.target_prompt_logprobs is not None:
        _check_targets(request.target_prompt_logprobs, prompt, limits)


def _check_k(name: str, k: int, tokens: int, most: int, limits: Limits | None = None) -> None:
    """Of each of ``tokens`` positions k numbers, ``most`` in all; no more than the vocabulary has, if limited so."""
    _require(k >= 0, f"{name} is {k}: expected 0 or more")
    if limits is not None:
        _require(k <= limits.vocab_size, f"{name} is {k}, the vocabulary has {limits.vocab_size} tokens")
    _require(k * tokens <= most, f"{name} is {k}, for {tokens} tokens: at most {most} numbers in all")


def check_target_shape(shape: Sequence[int], prompt: int) -> None:
    """Raise RequestError where no target_prompt_logprobs of a prompt of so many tokens may have ``shape``."""
    name = "target_prompt_logprobs"
    _require(
        len(shape) == 2 and shape[0] == prompt - 1 and shape[1] >= 1,
        f"{name} has shape {list(shape)}: expected [{prompt - 1}, K], a row per prompt token but the first",
    )
    cells = shape[0] * shape[1]
    _require(cells <= MOST_SCORES, f"{name} has {cells} cells: at most {MOST_SCORES}")


def _check_targets(targets: np.ndarray, prompt: int, limits: Limits) -> None:
    name = "target_prompt_logprobs"
    check_target_shape(targets.shape, prompt)
    _require(bool((targets != -1).any()), f"{name} names no token: every cell is -1 (skip)")
    bad = (targets < -1) | (targets >= limits.vocab_size)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise RequestError(
            f"{name}[{row}, {column}] is {targets[row, column]}: expected a token, 0 … {limits.vocab_size - 1}, or -1"
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
