"""Uploaded losses: what is refused and how it says so, and what the rest compute. Operations: test_torch_ops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.engine.graphs import trace
from txlab.engine import loss_graph
from txlab.engine.loss_graph import GraphNode, compile_graph
from txlab.engine.requests import RequestError

torch = pytest.importorskip("torch")


def created(function, **ranks):
    """A loss as the server makes it."""
    ranks = {"logprobs": 1} | ranks
    nodes, _ = trace(function, ranks)
    return compile_graph("s:loss:0", ranks, nodes)


def floats(*values):
    return np.array(values, np.float32)


# ------------------------------------------------------------------------------ what it computes


def test_value_gradient_and_metrics():
    def loss(logprobs, weights):
        return -(logprobs * weights).sum(), {"custom/n:sum": weights.sum(), "custom/first:mean": logprobs[0:1]}

    value = created(loss, weights=1).evaluate(floats(-1, -2), {"weights": floats(1, 3)})
    assert value.loss == 7.0
    np.testing.assert_array_equal(value.gradient, floats(-1, -3))
    assert value.gradient.dtype == np.float32
    assert value.metrics == {"custom/n:sum": 4.0, "custom/first:mean": -1.0}


def test_name_ranks_and_inputs():
    loss = created(lambda logprobs, m, s: ((logprobs * m).sum() * s, {}), logprobs=2, m=2, s=0)
    assert (loss.name, loss.rank, dict(loss.inputs)) == ("s:loss:0", 2, {"m": 2, "s": 0})
    value = loss.evaluate(np.ones((3, 2), np.float32), {"m": np.ones((3, 2), np.float32), "s": np.float32(0.5)})
    assert value.loss == 3.0
    np.testing.assert_array_equal(value.gradient, np.full((3, 2), 0.5))


def test_lengths_come_and_go(monkeypatch):
    monkeypatch.setattr(loss_graph, "MAX_COMPILED", 2)
    loss = created(lambda logprobs: (logprobs.mean() * logprobs.shape[0], {}))
    for length in (1, 2, 3, 1, 5, 2):
        value = loss.evaluate(np.full(length, 2.0, np.float32), {})
        assert value.loss == pytest.approx(2.0 * length)
        np.testing.assert_allclose(value.gradient, np.ones(length))
    assert len(loss._compiled) == 2


def test_integers_and_floats_mix():
    loss = created(lambda logprobs, i, w: ((logprobs[i] * w).mean() + w.mean(), {}), i=1, w=1)
    value = loss.evaluate(floats(1, 2, 3), {"i": np.array([2, 2, 0]), "w": floats(1, 1, 2)})
    np.testing.assert_allclose(value.gradient, floats(2, 0, 2) / 3)


def test_index_out_of_range_shows_as_nan():
    loss = created(lambda logprobs, i: (logprobs[i].sum(), {}), i=1)
    assert math.isnan(loss.evaluate(floats(1, 2), {"i": np.array([0, 2])}).loss)


def test_integers_beyond_32_bits_are_refused():
    loss = created(lambda logprobs, i: ((logprobs * i).sum(), {}), i=1)
    with pytest.raises(RequestError, match="input 'i' has numbers beyond 32 bits"):
        loss.evaluate(floats(1), {"i": np.array([2**40])})


def test_sizes_that_do_not_fit_name_the_node():
    loss = created(lambda logprobs, w: ((logprobs + w).sum(), {}), w=1)
    with pytest.raises(RequestError, match=r"node 'add' \(operator.add\): .*shape"):
        loss.evaluate(floats(1, 2), {"w": floats(1, 2, 3)})


def test_loss_for_one_number_of_targets():
    loss = created(lambda logprobs: ((logprobs * torch.arange(logprobs.shape[0] * 0 + 4)).sum(), {}), logprobs=2)
    assert loss.evaluate(np.ones((2, 4), np.float32), {}).loss == 12.0


# ------------------------------------------------------------------------------ refused functions

FUNCTIONS = {
    "torch.median is not supported on the server: pass the function itself": lambda x: (torch.median(x), {}),
    r"Tensor.add_ is not supported": lambda x: (x.exp().add_(1).sum(), {}),
    "Tensor.half is not supported": lambda x: (x.half().sum(), {}),
    "torch.bfloat16 is not supported; there are float32": lambda x: (x.to(torch.bfloat16).sum(), {}),
    "the attribute 'grad'": lambda x: (x.grad.sum(), {}),
    r"\(operator.getitem\): an index of bool .* torch.where": lambda x: (x[x > 0].sum(), {}),
    "an index of float32: call .long": lambda x: (x[x].sum(), {}),
    "index 300 of a dimension of size 240": lambda x: (x[300], {}),
    "mean of a tensor of int32": lambda x: (x.long().mean(), {}),
    "norm of order 3": lambda x: (x.norm(3), {}),
    "dimension 1 of a tensor of shape": lambda x: (x.sum(1), {}),
    "unexpected keyword argument 'out'": lambda x: (torch.exp(x, out=x).sum(), {}),
    "the mask must be of bool": lambda x: (x.masked_fill(x, 0).sum(), {}),
    "size that depends on values": lambda x: (torch.where(x > 0)[0].sum(), {}),
    "math.sqrt is for numbers: use torch.sqrt": lambda x: (math.sqrt(x) * x, {}),
    "integers to negative integer powers": lambda x: (x.sum() * (x.long() ** -1).sum(), {}),
    "more than 64 bits": lambda x: (x.sum() * (x.shape[0] ** 10**9), {}),
    r"\(operator.mul\): .* more than 64 bits": lambda x: (x.sum() * (x.numel() * 2**40 * 2**40), {}),
    "more than 64 dimensions": lambda x: (x.view(sum([x.shape] * 70, x.shape)).sum(), {}),
    "has more than": lambda x: (x.sum() * torch.ones(x.shape[0] * 10**8).sum(), {}),
    r"of shape \(10000, 10000\)": lambda x: (x.sum() + x.new_zeros(10**4, 10**4).sum(), {}),
    "the loss must be a floating scalar, not a tensor of float32 and shape": lambda x: (x, {}),
    "the loss must be a floating scalar, not a tensor of int32": lambda x: (x.long().sum(), {}),
    "the loss must be a floating scalar, not a int": lambda x: (x.shape[0], {}),
    "metric 'custom/m:sum' must be one number": lambda x: (x.sum(), {"custom/m:sum": x}),
}


@pytest.mark.parametrize("message", FUNCTIONS)
def test_refused_function(message):
    function = FUNCTIONS[message]

    def loss(logprobs):
        return function(logprobs)

    with pytest.raises(RequestError, match=message) as caught:
        created(loss)
    assert caught.value.category == "user"


def test_wrong_rank_shows_at_creation():
    with pytest.raises(RequestError, match="node 'matmul'"):
        created(lambda logprobs, w: ((logprobs @ w).sum(), {}), w=0)


# ------------------------------------------------------------------------------ refused graphs


def placeholder(name, target=None):
    return GraphNode("placeholder", name, target or name)


def call(name, target, *args, **kwargs):
    return GraphNode("call_function", name, target, args, kwargs)


def ref(name):
    return {"ref": name}


def output(loss="loss", metrics=None):
    return GraphNode("output", "output", "output", [{"tuple": [ref(loss), {"dict": metrics or {}}]}])


INPUT, SUM = placeholder("logprobs"), call("loss", "torch.sum", ref("logprobs"))
NESTED = ref("logprobs")
for _ in range(20):
    NESTED = [NESTED]

GRAPHS = {
    "last node of the graph must be its output": [INPUT, SUM],
    "an output before the end": [INPUT, output("logprobs"), output("logprobs")],
    "two nodes are named 'loss'": [INPUT, SUM, SUM, output()],
    "'loss' refers to 'later', which is no node before it": [INPUT, call("loss", "torch.sum", ref("later")), output()],
    "'output' refers to 'nothing'": [INPUT, output("nothing")],
    r"placeholders of the graph \(logprobs, w\) are not the inputs \(logprobs\)": [INPUT, placeholder("w"), output()],
    "os.system is not supported on the server": [INPUT, call("loss", "os.system", "true"), output()],
    "builtins.eval is not supported": [INPUT, call("loss", "builtins.eval", "1"), output()],
    "Tensor.__class__ is not supported": [INPUT, GraphNode("call_method", "loss", "__class__", [NESTED]), output()],
    "the attribute '__class__'": [INPUT, call("loss", "getattr", ref("logprobs"), "__class__"), output()],
    "call_module is not supported": [INPUT, GraphNode("call_module", "loss", "linear"), output()],
    "a tensor from outside the function": [INPUT, GraphNode("get_attr", "loss", "_tensor_constant0"), output()],
    "nested deeper than": [INPUT, call("loss", "torch.stack", NESTED), output()],
    "an argument is encoded as": [INPUT, call("loss", "torch.sum", {"pickle": "x"}), output()],
    "is encoded as .*'slice'": [INPUT, call("loss", "operator.getitem", ref("logprobs"), {"slice": 3}), output()],
    "torch.complex64 is not supported": [INPUT, call("loss", "torch.sum", {"dtype": "complex64"}), output()],
    "the output must be": [INPUT, GraphNode("output", "output", "output", [ref("logprobs")])],
    "metric 'loss:sum' must be named custom/": [INPUT, SUM, output(metrics={"loss:sum": ref("loss")})],
    "metric 'custom/a:sum' must be a tensor": [INPUT, SUM, output(metrics={"custom/a:sum": 1.0})],
    "the graph has 1002 nodes, more than 1000": [INPUT, *[call(f"n{n}", "torch.sum") for n in range(1000)], output()],
}


@pytest.mark.parametrize("message", GRAPHS)
def test_refused_graph(message):
    with pytest.raises(RequestError, match=message):
        compile_graph("s:loss:0", {"logprobs": 1}, GRAPHS[message])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "the first input must be logprobs"),
        ({"w": 1, "logprobs": 1}, "the first input must be logprobs"),
        ({"logprobs": 0}, "of rank 1"),
        ({"logprobs": 1, "w": 3}, "input 'w' of rank 3"),
        ({"logprobs": 1, "W.x": 1}, "input 'W.x' of rank 1"),
        ({"logprobs": 1} | {f"w{n}": 1 for n in range(16)}, "17 inputs: a loss has at most 16"),
    ],
)
def test_refused_inputs(inputs, message):
    graph = [*(placeholder(name) for name in inputs), SUM, output()]
    with pytest.raises(RequestError, match=message):
        compile_graph("s:loss:0", inputs, graph)


def test_encoded_arguments():
    graph = [
        INPUT,
        call("part", "operator.getitem", ref("logprobs"), {"tuple": [{"ellipsis": True}, {"slice": [1, None, None]}]}),
        call("clamped", "torch.clamp", ref("part"), max={"float": "inf"}),
        call("cast", "torch.sum", ref("clamped"), dtype={"dtype": "float64"}, axis=0),
        call("zeros", "torch.zeros", [1], device={"device": "cpu"}, layout={"layout": "strided"}),
        call("loss", "operator.add", ref("cast"), {"float": "-inf"}),
        output(metrics={"custom/a:sum": ref("zeros")}),
    ]
    value = compile_graph("s:loss:0", {"logprobs": 1}, graph).evaluate(floats(1, 2, 3), {})
    assert value.loss == -math.inf
    np.testing.assert_array_equal(value.gradient, floats(0, 1, 1))
