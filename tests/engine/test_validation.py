"""What is refused at the door, and how the message reads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.tools import datum, tokens
from txlab.engine.losses import Loss, Losses
from txlab.engine.requests import (
    AdamParams,
    CreateAdapter,
    Datum,
    ForwardBackward,
    Limits,
    OptimStep,
    RequestError,
    Sample,
    SamplingParams,
)
from txlab.engine.validation import validate
from txlab.lora.state import LoraConfig

LIMITS = Limits(vocab_size=320, max_context=64, max_rank=64)


def fb(data=(), loss="cross_entropy", config=None):
    return ForwardBackward("m", 1, tuple(data), loss, config or {})


def sample(prompt=None, num_samples=1, **params):
    prompt = tokens(5) if prompt is None else np.asarray(prompt)
    return Sample(None, prompt, num_samples, SamplingParams(**({"max_tokens": 4} | params)))


POLICY = {"logprobs": -1.0, "advantages": 1.0}
LONG = datum(65)
SHORT_TARGETS = Datum(tokens(5), tokens(4))
NOT_IN_VOCABULARY = Datum(np.array([1, 2, 320]), np.array([1, 2, 3]))
IGNORED_TARGET = Datum(np.array([1, 2, 3]), np.array([-100, -100, 3]))
BAD_TARGET = Datum(np.array([1, 2, 3]), np.array([1, -7, 3]))

REFUSED = {
    "rank too high": (CreateAdapter("m", LoraConfig(rank=65), "m"), "rank 65 is outside 1 … 64"),
    "rank zero": (CreateAdapter("m", LoraConfig(rank=0), "m"), "rank 0"),
    "nothing to train": (CreateAdapter("m", LoraConfig(8, 0, False, False, False), "m"), "nothing to train"),
    "unknown loss": (fb([datum(4)], "hinge"), "unknown loss_fn 'hinge'; this server has cross_entropy"),
    "unknown option": (fb([datum(4)], config={"gamma": 1.0}), r"loss_fn_config has 'gamma'"),
    "option not a number": (fb([datum(4, **POLICY)], "dro", {"beta": float("nan")}), r"\['beta'\] is nan"),
    "option missing": (fb([datum(4, **POLICY)], "dro"), r"dro needs loss_fn_config\['beta'\]"),
    "no data": (fb(), "data is empty"),
    "empty datum": (fb([Datum(tokens(0), tokens(0))]), r"data\[0\].model_input is empty"),
    "too long": (fb([datum(3), LONG]), r"data\[1\].model_input has 65 tokens; the context of this model is 64"),
    "token": (fb([NOT_IN_VOCABULARY]), r"data\[0\].model_input\[2\] is token 320, outside the vocabulary 0 … 319"),
    "target": (fb([BAD_TARGET]), r"data\[0\].loss_fn_inputs\['target_tokens'\]\[1\] is token -7"),
    "target of PyTorch to skip": (fb([IGNORED_TARGET]), r"\['target_tokens'\]\[0\] is -100.*use weight 0"),
    "targets' shape": (fb([SHORT_TARGETS]), r"target_tokens'\] has shape \(4,\), model_input has 5"),
    "missing input": (fb([datum(4, logprobs=-1.0)], "ppo"), r"data\[0\].loss_fn_inputs lacks 'advantages'"),
    "unknown input": (fb([datum(4, mask=1.0)]), r"loss_fn_inputs\['mask'\] is not an input of cross_entropy"),
    "input's shape": (fb([Datum(tokens(4), tokens(4), {"weights": np.ones(3)})]), r"\['weights'\] has shape \(3,\)"),
    "no target": (fb([Datum(tokens(4), np.zeros((4, 0), np.int32))]), r"shape \(4, 0\): expected 1 … 320 targets"),
    "target among several": (
        fb([Datum(tokens(2), np.array([[1, 2], [3, 320]]))]),
        r"data\[0\].loss_fn_inputs\['target_tokens'\]\[1, 1\] is token 320",
    ),
    "several targets of a policy": (
        fb([datum(4, **POLICY), Datum(tokens(4), np.ones((4, 2), np.int32), {})], "ppo"),
        r"data\[1\].*'target_tokens'\] has shape \(4, 2\): ppo takes one target per token",
    ),
    "weights of one of several": (
        fb([Datum(tokens(4), np.ones((4, 2), np.int32), {"weights": np.ones(4)})]),
        r"\['weights'\] has shape \(4,\): expected \(4, 2\)",
    ),
    "no mask": (fb([datum(4, **POLICY)], "gspo"), r"data\[0\].loss_fn_inputs lacks 'sequence_ratio_mask'"),
    "beta per token": (fb([datum(4, **POLICY, beta=1.0)], "dro", {"beta": 1.0}), "'beta'.* is not an input of dro"),
    "stable_reinforce": (
        fb([datum(4, **POLICY)], "stable_reinforce"),
        "'stable_reinforce' is not served: .* use import",
    ),
    "text option": (fb([datum(4, **POLICY)], "ppo", {"clip_low_threshold": "0.9"}), "'0.9': expected a finite number"),
    "nan": (fb([datum(4, weights=np.nan)]), r"data\[0\].loss_fn_inputs\['weights'\] holds NaN"),
    "learning rate": (OptimStep("m", 1, AdamParams(learning_rate=-1.0)), "learning_rate is -1.0"),
    "beta": (OptimStep("m", 1, AdamParams(beta2=1.0)), "beta2 is 1.0: expected less than 1"),
    "eps": (OptimStep("m", 1, AdamParams(eps=float("inf"))), "eps is inf"),
    "empty prompt": (sample([]), "prompt is empty"),
    "prompt token": (sample([5, 999]), r"prompt\[1\] is token 999"),
    "context": (sample(max_tokens=60), "prompt of 5 tokens and max_tokens 60 make 65"),
    "no samples": (sample(num_samples=0), "num_samples is 0"),
    "max_tokens": (sample(max_tokens=0), "max_tokens is 0"),
    "temperature": (sample(temperature=-0.1), "temperature is -0.1"),
    "temperature nan": (sample(temperature=float("nan")), "temperature is nan"),
    "top_k zero": (sample(top_k=0), "top_k is 0"),
    "top_k negative": (sample(top_k=-5), "top_k is -5"),
    "top_p zero": (sample(top_p=0.0), "top_p is 0.0"),
    "top_p large": (sample(top_p=2.0), "top_p is 2.0"),
    "stop id": (sample(stop=(320,)), "stop token 320"),
    "stop string": (sample(stop=("",)), "empty string"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_message_that_names_the_place(case):
    request, message = REFUSED[case]
    with pytest.raises(RequestError, match=message) as error:
        validate(request, LIMITS)
    assert error.value.category == "user"


@pytest.mark.parametrize(
    "request_",
    [
        CreateAdapter("m", LoraConfig(rank=64), "m"),
        fb([datum(64, weights=-2.0)]),
        fb([datum(4, **POLICY)], "dro", {"beta": 0.1}),
        fb([datum(4, **POLICY, clip_low_threshold=0.5)], "ppo"),
        fb([datum(4, **POLICY, sequence_ratio_mask=1, clip_high_threshold=2)], "gspo", {"clip_low_threshold": 0.5}),
        fb([Datum(tokens(4), np.ones((4, 1), np.int32), {"weights": np.ones((4, 1))})]),
        fb([Datum(tokens(4), np.ones((4, 1), np.int32), {"weights": np.ones(4)})]),
        fb([Datum(tokens(4), np.ones((4, 5), np.int32), {"weights": np.ones((4, 5))}), datum(3)]),
        OptimStep("m", 1, AdamParams(weight_decay=0.1, grad_clip_norm=1.0)),
        sample(max_tokens=59, temperature=0.0, top_k=5, top_p=0.1, stop=("a", "b")),
    ],
)
def test_what_is_right_passes(request_):
    validate(request_, LIMITS)


class OnTheHost:
    """What validation sees of a loss of the host."""

    name, rank, inputs = "s:loss:0", 2, {"target_tokens": 2, "a": 0, "b": 1, "c": 2}


def host_datum(**inputs) -> Datum:
    given = {"a": np.ones(1), "b": np.arange(7), "c": np.ones((2, 5))} | inputs
    return Datum(tokens(4), np.ones((4, 3), np.int32), {k: v for k, v in given.items() if v is not None})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (fb([host_datum(b=None)], OnTheHost.name), r"data\[0\].loss_fn_inputs lacks 'b', which s:loss:0 needs"),
        (fb([host_datum(a=np.ones(2))], OnTheHost.name), r"\['a'\] has shape \(2,\): s:loss:0 takes rank 0"),
        (fb([host_datum(c=np.ones(4))], OnTheHost.name), r"\['c'\] has shape \(4,\): s:loss:0 takes rank 2"),
        (fb([host_datum(b=np.array([np.nan]))], OnTheHost.name), r"\['b'\] holds NaN"),
        (fb([datum(4)], OnTheHost.name), "takes logprobs of rank 2"),
        (fb([host_datum()], OnTheHost.name, {"beta": 1.0}), "'beta', unknown to s:loss:0, which takes none"),
        (fb([datum(4)], "hinge"), "unknown loss_fn 'hinge'; this server has .*, gspo, mine$"),
    ],
)
def test_added_losses(request_, message):
    """An uploaded loss reads inputs of any length; those that it does not name may be anything."""
    losses = Losses()
    losses.add(OnTheHost())
    losses.add(Loss("mine", lambda logprobs, inputs: None, ("x",)))
    validate(fb([host_datum(more=np.ones(9))], OnTheHost.name), LIMITS, losses)
    validate(fb([datum(4, x=1.0)], "mine"), LIMITS, losses)
    with pytest.raises(RequestError, match=message):
        validate(request_, LIMITS, losses)
