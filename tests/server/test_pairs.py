"""Half of a pair of forward_backward and optim_step takes no effect: the SDK, a real port, a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from tinker import types

from tests.server.conftest import Running
from tests.server.test_api import pass_body
from tests.server.test_real_engine import TOKENS, datum, lab, logprobs, train
from txlab.engine.requests import RequestError, RewindAdapter

ADAM = types.AdamParams(learning_rate=3e-3)


@pytest.fixture(scope="module")
def running(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_TELEMETRY", "0")
        with lab(tiny_llama, tmp_path_factory.mktemp("store")) as running:
            yield running


@pytest.fixture
def fresh(running: Running) -> tinker.TrainingClient:
    return running.client().create_lora_training_client(running.engine.base.name, rank=4, seed=1).result(60)


@pytest.fixture
def client(fresh: tinker.TrainingClient) -> tinker.TrainingClient:
    """With momentum, so that a step without a gradient moves it."""
    train(fresh, 3)
    return fresh


def of_weights(*weights: float) -> types.Datum:
    inputs = {"target_tokens": np.array(TOKENS[1:]), "weights": np.resize(np.array(weights, np.float32), 8)}
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=inputs)


REFUSED = {
    "a typo in the loss": (lambda c: c.forward_backward([datum()], "cros_entropy"), "unknown loss_fn 'cros_entropy'"),
    "a wrong key": (lambda c: c.forward_backward([datum()], "cross_entropy", {"clip": 1.0}), "clip"),
    "NaN": (lambda c: c.forward_backward([of_weights(1, np.nan)], "cross_entropy"), "finite"),
    "on the device": (lambda c: c.forward_backward([of_weights(3e38)], "cross_entropy"), "diverged"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_the_step_of_a_refused_pass_is_refused_and_names_it(client: tinker.TrainingClient, why: str) -> None:
    before = logprobs(client)
    send, message = REFUSED[why]
    send(client)  # as in the README: nobody looks at this future
    step = client.optim_step(ADAM)
    with pytest.raises(tinker.RequestFailedError, match="this optim_step was refused, and nothing has moved") as error:
        step.result(60)
    assert message in str(error.value)
    assert "its forward_backward (seq_id 8) failed" in str(error.value)
    assert error.value.category == types.RequestErrorCategory.User
    np.testing.assert_array_equal(logprobs(client), before)
    train(client, 1)
    assert client.optim_step(ADAM).result(60).metrics["step"] == 5, "the refused one is not counted"


@pytest.mark.parametrize("why", REFUSED)
def test_the_first_pair_of_an_adapter_is_refused_too(fresh: tinker.TrainingClient, why: str) -> None:
    REFUSED[why][0](fresh)
    with pytest.raises(tinker.RequestFailedError, match="this optim_step was refused"):
        fresh.optim_step(ADAM).result(60)


def test_a_mended_pass_may_be_stepped(client: tinker.TrainingClient, running: Running) -> None:
    """No step was sent with the one that failed: a cell that waits for each result ends at the failed one."""
    with pytest.raises(tinker.RequestFailedError, match="unknown loss_fn"):
        client.forward_backward([datum()], "cros_entropy").result(60)
    other = running.client().create_lora_training_client(running.engine.base.name, rank=4, seed=1).result(60)
    train(other, 3)
    assert train(client, 2) == train(other, 2)
    np.testing.assert_array_equal(logprobs(client), logprobs(other))


def test_a_pass_that_follows_a_damaged_one_may_be_stepped(client: tinker.TrainingClient, running: Running) -> None:
    """It is refused in its first answer: who has read that and sends another pass at once knows of it."""
    model_id, first = client.model_id, 7  # behind three pairs
    with httpx.Client(base_url=running.url, headers={"X-API-Key": running.key}) as raw:
        assert raw.post("/api/v1/forward_backward", content=pass_body(model_id, first)[:-5]).status_code == 400
        passed = raw.post("/api/v1/forward_backward", content=pass_body(model_id, first + 1)).json()
        adam = {"learning_rate": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12}
        step = {"model_id": model_id, "seq_id": first + 2, "adam_params": adam}
        stepped = raw.post("/api/v1/optim_step", json=step).json()
        for future in (passed, stepped):
            answer = raw.post("/api/v1/retrieve_future", json={"request_id": future["request_id"]})
            assert b"error" not in answer.content, answer.text
        assert answer.json()["metrics"]["grad_norm"] > 0


def test_a_step_alone_after_a_failure_that_was_told(fresh: tinker.TrainingClient) -> None:
    """It is refused as soon as it could move something."""
    for trained in (False, True):
        with pytest.raises(tinker.RequestFailedError, match="finite"):
            fresh.forward_backward([of_weights(np.nan)], "cross_entropy").result(60)
        before = logprobs(fresh)
        if trained:
            with pytest.raises(tinker.RequestFailedError, match="this optim_step was refused"):
                fresh.optim_step(ADAM).result(60)
        else:
            assert fresh.optim_step(ADAM).result(60).metrics["grad_norm"] == 0
        np.testing.assert_array_equal(logprobs(fresh), before)
        train(fresh, 1)


def test_one_bad_datum_in_a_call_of_several_chunks(running: Running, client: tinker.TrainingClient) -> None:
    before = logprobs(client)
    client.forward_backward([datum()] * 1500 + [of_weights(np.nan)] + [datum()] * 1000, "cross_entropy")
    with pytest.raises(tinker.RequestFailedError, match="this optim_step was refused"):
        client.optim_step(ADAM).result(120)
    np.testing.assert_array_equal(logprobs(client), before)
    other = running.client().create_lora_training_client(running.engine.base.name, rank=4, seed=1).result(60)
    train(other, 3)
    assert train(client, 2) == train(other, 2), "nothing of the other chunks is left"


def test_a_refused_step_takes_its_gradient_along(running: Running, client: tinker.TrainingClient) -> None:
    """A cell with a wrong learning rate, mended and run again: the gradient counts once."""
    client.forward_backward([datum()], "cross_entropy").result(60)
    with pytest.raises(tinker.RequestFailedError, match=r"learning_rate.*Whatever was accumulated for this step was"):
        client.optim_step(types.AdamParams(learning_rate=-1.0)).result(60)
    with pytest.raises(tinker.RequestFailedError, match=r"this optim_step was refused.*learning_rate"):
        client.optim_step(ADAM).result(60)
    other = running.client().create_lora_training_client(running.engine.base.name, rank=4, seed=1).result(60)
    train(other, 3)
    assert train(client, 2) == train(other, 2)


def test_a_rewind_between_pass_and_step(running: Running, client: tinker.TrainingClient) -> None:
    client.forward_backward([datum()], "cross_entropy").result(60)
    running.engine.ask(RewindAdapter(client.model_id, 2)).result(60)
    before = logprobs(client)
    with pytest.raises(tinker.RequestFailedError, match="the lab took the adapter back to step 2"):
        client.optim_step(ADAM).result(60)
    np.testing.assert_array_equal(logprobs(client), before)
    train(client, 1)


def test_what_is_saved_behind_a_refused_pair_is_what_was(running: Running, client: tinker.TrainingClient) -> None:
    client.forward_backward([datum()], "cros_entropy")
    client.optim_step(ADAM)
    path = client.save_state("behind").result(60).path
    info = asyncio.run_coroutine_threadsafe(
        running.state.in_worker(running.state.checkpoints.info, path), running.loop
    ).result(60)
    assert info.step == 3
    resumed = running.client().create_training_client_from_state_with_optimizer(path).result(60)
    np.testing.assert_allclose(logprobs(resumed), logprobs(client), atol=1e-6)


def test_a_loss_of_the_clients_own_that_fails(running: Running, client: tinker.TrainingClient, torch: Any) -> None:
    """The SDK refuses the step itself; the server's part is that the adapter is as it was, and others train."""
    before = logprobs(client)
    for loss in (lambda data, lps: (sum(lp.sum() for lp in lps) * torch.nan, {}), lambda data, lps: 1 / 0):
        own = running.client().create_lora_training_client(running.engine.base.name, rank=4, seed=1).result(60)
        train(own, 3)
        failed, step = own.forward_backward_custom([datum()], loss), own.optim_step(ADAM)
        for future in (failed, step):
            with pytest.raises((RequestError, tinker.TinkerError, RuntimeError, ZeroDivisionError)):
                future.result(60)
        state = running.engine.ask(RewindAdapter(own.model_id, 3)).result(60)
        assert state is None, "it is still at step 3, which is kept or the present one"
    np.testing.assert_array_equal(logprobs(client), before)
