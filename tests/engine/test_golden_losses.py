"""Uploaded losses give what torch gave when they were traced; needs no torch."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.engine.golden import make_losses
from txlab.engine.loss_graph import GraphNode, compile_graph

GOLDEN = json.loads(make_losses.FILE.read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_value_gradient_and_metrics_are_torchs(name):
    golden = GOLDEN[name]
    ranks = {key: given["rank"] for key, given in golden["inputs"].items()}
    loss = compile_graph(name, ranks, [GraphNode(**node) for node in golden["nodes"]])
    arrays = {key: np.array(given["value"], np.float32) for key, given in golden["inputs"].items()}
    value = loss.evaluate(arrays.pop("logprobs"), arrays)
    assert value.loss == pytest.approx(golden["loss"], rel=1e-5)
    np.testing.assert_allclose(value.gradient, golden["gradient"], rtol=1e-5, atol=1e-6)
    assert value.metrics == pytest.approx(golden["metrics"], rel=1e-5)


@pytest.mark.usefixtures("torch")
def test_the_file_is_what_torch_says_now():
    for name, (function, inputs) in make_losses.losses().items():
        now = make_losses.record(function, inputs)
        assert now["loss"] == pytest.approx(GOLDEN[name]["loss"], rel=1e-5)
        np.testing.assert_allclose(now["gradient"], GOLDEN[name]["gradient"], rtol=1e-5)
