"""Inflight samplers: all of a model's draw with the newest weights that were published."""

from __future__ import annotations

import numpy as np
import pytest
from tinker import types

from tests.server.fake_engine import ENDLESS
from txlab.engine.requests import DropSnapshot, Sample, TakeSnapshot
from txlab.server.routes import sampling

PROMPT = types.ModelInput.from_ints([1, 2, 3])
SHORT = types.SamplingParams(max_tokens=2)


@pytest.fixture
def client(server):
    return server.client().create_lora_training_client(base_model="fake/model", rank=8).result()


def learn(client, amount: float) -> None:
    """Add to the fake engine's only weight, which is what its samplers draw."""
    inputs = {"target_tokens": np.array([1, 1]), "weights": np.ones(2, np.float32)}
    datum = types.Datum(model_input=types.ModelInput.from_ints([1, 1]), loss_fn_inputs=inputs)
    client.forward_backward([datum], "cross_entropy")
    client.optim_step(types.AdamParams(learning_rate=amount)).result(timeout=20)


def save(client, kind="inflight"):
    return client.save_weights_and_get_sampling_client(kind=kind).result(timeout=20)


def drawn(sampler) -> int:
    return sampler.sample(PROMPT, 1, SHORT).result(timeout=20).sequences[0].tokens[0]


def test_each_save_moves_all_inflight_samplers_of_its_model_on(server, client):
    frozen, first = save(client, "snapshot"), save(client)
    learn(client, 5.0)
    assert (drawn(frozen), drawn(first)) == (0, 0), "training alone publishes nothing"
    second = save(client)
    assert (drawn(frozen), drawn(first), drawn(second)) == (0, 5, 5)
    learn(client, 2.0)
    save(client)
    assert (drawn(frozen), drawn(first), drawn(second)) == (0, 7, 7)
    assert set(server.engine.snapshots.values()) == {0.0, 7.0}, "what nobody draws with is dropped"


def test_models_do_not_share(server):
    service = server.client()
    one, other = (service.create_lora_training_client(base_model="fake/model", rank=8).result() for _ in range(2))
    samplers = save(one), save(other)
    learn(one, 3.0)
    save(one)
    assert [drawn(sampler) for sampler in samplers] == [3, 0]


def test_a_sample_that_runs_keeps_its_weights_and_later_ones_get_the_newest(server, client, monkeypatch):
    sampler = save(client)
    running = sampler.sample(types.ModelInput.from_ints([ENDLESS]), 1, SHORT)
    drawn(sampler)
    learn(client, 4.0)
    convert = sampling._to_sample

    def convert_while_weights_move_on(*args):
        work = convert(*args)
        live = server.state.sessions.sampler(sampler._sampling_session_id)
        assert work[0].snapshot_id == live.snapshot_id
        live.snapshot_id = "published-meanwhile"
        return work

    monkeypatch.setattr(sampling, "_to_sample", convert_while_weights_move_on)
    server.engine.snapshots["published-meanwhile"] = 9.0
    assert drawn(sampler) == 9
    monkeypatch.undo()
    save(client)
    assert drawn(sampler) == 4
    order = [type(r) for r in server.engine.log if isinstance(r, (Sample, TakeSnapshot, DropSnapshot))]
    assert order == [TakeSnapshot, Sample, Sample, Sample, TakeSnapshot, DropSnapshot, Sample]
    running.future().cancel()


def test_a_save_that_fails_leaves_the_published_weights(server, client):
    sampler = save(client)
    learn(client, 4.0)
    server.engine.broken = (TakeSnapshot,)
    with pytest.raises(Exception, match="out of memory"):
        save(client)
    server.engine.broken = ()
    assert drawn(sampler) == 0
    assert len(server.engine.snapshots) == 1
    save(client)
    assert drawn(sampler) == 4


def test_the_end_of_a_session_drops_the_shared_snapshot_once(server):
    with server.client() as service:
        client = service.create_lora_training_client(base_model="fake/model", rank=8).result()
        save(client), save(client), save(client, "snapshot")
    server.session()
    assert server.engine.snapshots == {}
    drops = [request.snapshot_id for request in server.engine.log if isinstance(request, DropSnapshot)]
    assert len(drops) == len(set(drops)) == 3
