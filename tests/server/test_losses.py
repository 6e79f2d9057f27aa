"""Losses that clients upload: the route, and the SDK's handles from end to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import tinker
from tinker import types

from tests.models.tiny import make_tiny
from tests.server.conftest import Running, serve
from txlab.config import EngineSettings, ModelSettings, ServerSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.models.base import load_base

SUM = [
    {"op": "placeholder", "name": "logprobs", "target": "logprobs"},
    {"op": "call_function", "name": "total", "target": "torch.sum", "args": [{"ref": "logprobs"}]},
    {"op": "output", "name": "output", "target": "output", "args": [{"tuple": [{"ref": "total"}, {"dict": {}}]}]},
]


def upload(server, session_id, number=0, nodes=SUM, rank=1, **more):
    body = {
        "session_id": session_id,
        "custom_loss_seq_id": number,
        "name": "total",
        "inputs": [{"name": "logprobs", "rank": rank}],
        "graph": {"format": 1, "nodes": nodes},
    }
    return server.post("create_custom_loss", body | more)


def result(server, response):
    return server.retrieve(response.json()["request_id"]).json()


def test_loss_is_made_once(server):
    session_id = server.session()
    first = upload(server, session_id)
    assert result(server, first) == {"loss_id": f"{session_id}:loss:0", "type": "create_custom_loss"}
    loss = server.engine.losses.get(f"{session_id}:loss:0")
    assert upload(server, session_id).json() == first.json()
    assert server.engine.losses.get(f"{session_id}:loss:0") is loss
    assert result(server, upload(server, session_id, 1))["loss_id"] == f"{session_id}:loss:1"


def test_loss_ends_with_its_session(server):
    session_id, other = server.session(), server.session()
    ids = [result(server, upload(server, owner))["loss_id"] for owner in (session_id, other)]
    server.post(f"sessions/{session_id}/finish", {"reason": {"type": "success"}})
    assert server.engine.losses.get(ids[0]) is None
    assert server.engine.losses.get(ids[1]) is not None


def test_refused_graph_is_the_users_failure(server):
    unknown = [SUM[0], SUM[1] | {"target": "torch.median"}, SUM[2]]
    refused = result(server, upload(server, server.session(), nodes=unknown))
    assert refused["category"] == "user"
    assert refused["error"].startswith("custom loss 'total': node 'total': torch.median is not supported on the server")
    assert "must be logprobs, of rank 1" in result(server, upload(server, server.session(), rank=0))["error"]


def test_refused_at_the_door(server):
    assert upload(server, "nobody").status_code == 404
    session_id = server.session()
    assert upload(server, session_id, graph={"format": 2, "nodes": []}).status_code == 422
    assert upload(server, session_id, graph={"nodes": [{"op": "output"}]}).status_code == 422


# ------------------------------------------------------------------------------ a real model

torch = pytest.importorskip("torch")

TOKENS = [11, 45, 97, 23, 150, 61, 88, 12, 71]


def ppo(logprobs, old, advantages):
    ratio = torch.exp(logprobs - old)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).sum()
    return loss, {"custom/ratio:mean": ratio.mean(), "custom/clipped:sum": (ratio != clipped).float().sum()}


def distill(logprobs, teacher):
    return -(teacher * logprobs).sum(-1).mean(), {"custom/top:mean": logprobs.max(-1).values.mean()}


def scaled(logprobs, weights, scale):
    nll = -(logprobs * weights).sum() / weights.sum().clamp(min=1)
    return scale * nll, {"custom/nll:mean": nll, "custom/tokens:sum": (weights > 0).sum()}


def data(**inputs):
    """Two datums of different lengths."""

    def datum(length):
        cut = {name: value if value.ndim == 0 else value[:length] for name, value in inputs.items()}
        return types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:length]), loss_fn_inputs=cut)

    return [datum(8), datum(5)]


RNG = np.random.default_rng(0)
TARGETS = np.array(TOKENS[1:])
OLD = np.array([-5.5, -6.0, -5.0, -6.5, -5.8, -5.7, -5.6, -6.1], np.float32)
ADVANTAGES = np.array([1, -1, 2, 0.5, -2, 1, -0.5, 1], np.float32)

CASES = {
    "ppo": (
        ppo,
        {"logprobs": 1, "old": 1, "advantages": 1},
        {"target_tokens": TARGETS, "old": OLD, "advantages": ADVANTAGES},
    ),
    "targets": (
        distill,
        {"logprobs": 2, "teacher": 2},
        {
            "target_tokens": np.stack([TARGETS, TARGETS + 1, TARGETS + 2], 1),
            "teacher": RNG.dirichlet((1, 1, 1), 8).astype(np.float32),
        },
    ),
    "number": (
        scaled,
        {"logprobs": 1, "weights": 1, "scale": 0},
        {"target_tokens": TARGETS, "weights": np.ones(8, np.float32), "scale": np.array(0.25, np.float32)},
    ),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("lab")
    model = make_tiny(folder / "tiny", tie_word_embeddings=False)
    settings = EngineSettings(train_tokens=128, sample_rows=4, decode_steps=2, compile_cache=None)
    engine = Engine(load_base(ModelSettings(name=str(model))), settings, EventBus())
    engine.start()
    with serve(engine, folder / "store", ServerSettings()) as running:
        yield running
    engine.stop()


@pytest.fixture
def service(lab: Running) -> tinker.ServiceClient:
    return lab.client()


def step(service, lab, run):
    """One step of a fresh adapter, always the same one, and what it learned: a pass, the step, logprobs after it."""
    client = service.create_lora_training_client(base_model=lab.engine.base.name, rank=4, seed=1).result(60)
    passed, stepped = run(client), client.optim_step(types.AdamParams(learning_rate=3e-3))
    probe = data(target_tokens=TARGETS, weights=np.ones(8, np.float32))
    after = client.forward(probe, "cross_entropy").result(120).loss_fn_outputs[0]["logprobs"].to_numpy()
    return passed.result(120), stepped.result(120).metrics["grad_norm"], after


def logprobs(output):
    return [row["logprobs"].to_numpy().reshape(row["logprobs"].shape) for row in output.loss_fn_outputs]


def assert_same_step(one, other):
    """Equal logprobs, gradient and effect of two steps. Metrics are the caller's."""
    for ours, theirs in zip(logprobs(one[0]), logprobs(other[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert one[1] == pytest.approx(other[1], rel=1e-4)
    np.testing.assert_allclose(one[2], other[2], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_server_and_client_side_agree(service, lab, case):
    function, ranks, inputs = CASES[case]
    handle = service.create_custom_loss(function, input_ranks=ranks).result(60)
    assert handle.loss_id == f"{service.holder.get_session_id()}:loss:0"
    client_side = replace(handle, loss_id=None)
    here = step(service, lab, lambda client: client.forward_backward_custom(data(**inputs), handle))
    there = step(service, lab, lambda client: client.forward_backward_custom(data(**inputs), client_side))
    assert_same_step(here, there)
    for name in ("loss:sum", *(name for name in there[0].metrics if name.startswith("custom/"))):
        assert here[0].metrics[name] == pytest.approx(there[0].metrics[name], rel=1e-5), name


def test_uploaded_ppo_is_the_built_in_one(service, lab):
    function, ranks, inputs = CASES["ppo"]
    handle = service.create_custom_loss(function, input_ranks=ranks).result(60)
    builtin = {"target_tokens": TARGETS, "logprobs": OLD, "advantages": ADVANTAGES}
    uploaded = step(service, lab, lambda client: client.forward_backward_custom(data(**inputs), handle))
    fused = step(service, lab, lambda client: client.forward_backward(data(**builtin), "ppo"))
    assert_same_step(uploaded, fused)
    assert uploaded[0].metrics["loss:sum"] == pytest.approx(fused[0].metrics["loss:sum"], rel=1e-5)


def test_refused_function_raises_at_creation(service):
    def loss(logprobs):
        return torch.median(logprobs), {}

    with pytest.raises(tinker.RequestFailedError, match=r"custom loss 'loss': node 'median': torch.median is not"):
        service.create_custom_loss(loss, input_ranks={"logprobs": 1}).result(60)


def test_failing_datum_fails_its_pass_alone(service, lab):
    def loss(logprobs, other):
        return (logprobs * other).sum(), {}

    client = service.create_lora_training_client(base_model=lab.engine.base.name, rank=4).result(60)
    handle = service.create_custom_loss(loss, input_ranks={"logprobs": 1, "other": 1}).result(60)
    long, fits = np.ones(11, np.float32), np.ones(8, np.float32)
    bad = client.forward_backward_custom(_one(other=long), handle)
    good = client.forward_backward_custom(_one(other=fits), handle)
    with pytest.raises(tinker.RequestFailedError, match=r"data\[0\] failed: node 'mul' \(operator.mul\)"):
        bad.result(120)
    assert np.isfinite(good.result(120).metrics["loss:sum"])


def _one(**inputs):
    tokens = types.ModelInput.from_ints(TOKENS[:8])
    return [types.Datum(model_input=tokens, loss_fn_inputs={"target_tokens": TARGETS, **inputs})]
