"""What the lab does to adapters, as their clients and the records see it: the SDK over a real port, a real engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.server.conftest import Running
from tests.server.test_real_engine import datum, lab, logprobs, train
from txlab.engine.requests import PauseAdapter, RequestError, ResumeAdapter, StopAdapter
from txlab.server.controls import fork, rename, save
from txlab.server.errors import ApiError
from txlab.store.checkpoints import CheckpointError


@pytest.fixture(scope="module")
def running(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_TELEMETRY", "0")
        with lab(tiny_llama, tmp_path_factory.mktemp("store")) as running:
            yield running


@pytest.fixture
def client(running: Running) -> tinker.TrainingClient:
    about = {"name": "first name", "kept": "yes"}
    base = running.engine.base.name
    return running.client().create_lora_training_client(base, rank=4, seed=1, user_metadata=about).result(60)


def on_loop(running: Running, work):
    """What the lab's host does."""
    return asyncio.run_coroutine_threadsafe(work, running.loop).result(60)


def test_a_stopped_run_fails_once_and_at_once(running: Running, client: tinker.TrainingClient) -> None:
    """Every request fails through its future, with the message and category that the SDK raises; none comes again."""
    engine = running.engine
    engine.ask(PauseAdapter(client.model_id)).result(20)
    futures = [client.forward_backward([datum()], "cross_entropy"), client.optim_step(types.AdamParams())]
    futures.append(client.save_weights_and_get_sampling_client())
    while engine._scheduler.queued(client.model_id) < 3:
        time.sleep(0.01)
    engine.ask(StopAdapter(client.model_id)).result(20)
    for future in futures:
        with pytest.raises(
            tinker.RequestFailedError, match="stopped from the lab: the run of adapter 'first name'"
        ) as e:
            future.result(timeout=20)
        assert e.value.category == types.RequestErrorCategory.User
    engine.ask(ResumeAdapter(client.model_id)).result(20)
    train(client, 1)
    failed = [row.kind for row in running.state.records.requests(client.model_id.partition(":")[0]) if row.error]
    assert sorted(failed) == ["ForwardBackward", "OptimStep", "TakeSnapshot"]


def test_what_comes_late_of_a_stopped_run_fails_too(running: Running, client: tinker.TrainingClient) -> None:
    """The SDK sends the first chunk of a pass last: it must not be trained on when the others were stopped."""

    def step(seq_id: int) -> str:
        body = {"model_id": client.model_id, "seq_id": seq_id, "adam_params": {"learning_rate": 1e-3}}
        return running.post("optim_step", body).json()["request_id"]

    ahead = step(3)
    while not running.engine._scheduler.queued(client.model_id):
        time.sleep(0.01)
    running.engine.ask(StopAdapter(client.model_id)).result(20)
    assert "stopped from the lab" in running.result(ahead)["error"]
    running.engine.ask(ResumeAdapter(client.model_id)).result(20)
    late = running.result(step(2))
    assert late["category"] == "user"
    assert "belongs to a run that was stopped" in late["error"]
    assert "metrics" in running.result(step(4))


def test_a_new_name_is_that_of_the_model_and_of_its_run(running: Running, client: tinker.TrainingClient) -> None:
    model_id = client.model_id
    on_loop(running, rename(running.state, model_id, "second name"))
    model = running.state.sessions.model(model_id)
    assert (model.name, model.user_metadata) == ("second name", {"name": "second name", "kept": "yes"})
    row = running.state.records.run(model_id)
    assert row is not None
    assert (row.name, row.user_metadata) == ("second name", {"name": "second name", "kept": "yes"})
    with pytest.raises(ApiError, match="does not exist"):
        on_loop(running, rename(running.state, "0:train:0", "x"))


def test_a_checkpoint_is_of_this_moment_and_in_every_list(running: Running, client: tinker.TrainingClient) -> None:
    train(client, 2)
    trained = logprobs(client)
    paths = [on_loop(running, save(running.state, client.model_id, name)) for name in (None, None, "mine")]
    assert [path.rpartition("/")[2] for path in paths] == ["lab-step-0002", "lab-step-0002-2", "mine"]
    for wrong in ("mine", "no/name"):
        with pytest.raises(CheckpointError):
            on_loop(running, save(running.state, client.model_id, wrong))
    infos = running.state.checkpoint_index.of_run(client.model_id)
    assert {info.path for info in infos} == set(paths)
    assert {(info.step, info.has_optimizer) for info in infos} == {(2, True)}
    resumed = running.client().create_training_client_from_state_with_optimizer(paths[0]).result(60)
    assert logprobs(resumed) == pytest.approx(trained, abs=1e-6)


def test_a_fork_is_a_model_of_its_session(running: Running, client: tinker.TrainingClient) -> None:
    train(client, 1)
    session = running.state.sessions.get(running.session(display_name="lab"))
    fork_id = on_loop(running, fork(running.state, client.model_id, session.session_id, 7, "branch", None))
    assert fork_id == f"{session.session_id}:train:7"
    assert running.state.sessions.model(fork_id).lora == running.state.sessions.model(client.model_id).lora
    row = running.state.records.run(fork_id)
    assert row is not None
    assert row.user_metadata == {"name": "branch", "kept": "yes", "forked_from": client.model_id}
    info = running.post("get_info", {"model_id": fork_id}).json()
    assert (info["model_id"], info["lora_rank"]) == (fork_id, 4)
    with pytest.raises(RequestError, match=r"step 5 .* is not kept"):
        on_loop(running, fork(running.state, client.model_id, session.session_id, 8, "branch", 5))
    assert list(session.models) == [fork_id], "what failed is not held"
    with pytest.raises(ApiError, match="session 'nobody'"):
        on_loop(running, fork(running.state, client.model_id, "nobody", 0, "branch", None))
