"""Methods of the SDK that no other test has a reason to call."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import tinker
from tinker import types

from tests.models.tiny import make_tokenizer
from tests.server.conftest import Running

pytestmark = pytest.mark.filterwarnings("ignore:DEPRECATED:FutureWarning")

PROMPT = types.ModelInput.from_ints([1, 2, 3])


@pytest.fixture
def trainer(server: Running) -> tinker.TrainingClient:
    return server.client().create_lora_training_client(base_model="fake/model", rank=4).result()


def datum() -> types.Datum:
    inputs = {"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]}
    return types.Datum(model_input=PROMPT, loss_fn_inputs=inputs)


def first_token(sampler: tinker.SamplingClient) -> int:
    return sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=1)).result(timeout=20).sequences[0].tokens[0]


def test_the_deprecated_ways_to_ask_what_is_served(server: Running):
    service = server.client()
    with pytest.warns(FutureWarning):
        asked = service.get_server_capabilities()
    rest = service.create_rest_client()
    assert asked == rest.get_server_capabilities().result(timeout=20)
    assert [model.model_name for model in asked.supported_models] == ["fake/model"]


def test_a_sampler_from_a_training_client_has_the_weights_of_its_path(trainer: tinker.TrainingClient, server: Running):
    trainer.forward_backward([datum()], "cross_entropy")
    trainer.optim_step(types.AdamParams(learning_rate=7.0)).result(timeout=20)
    path = trainer.save_weights_for_sampler("named").result(timeout=20).path
    assert first_token(trainer.create_sampling_client(path).result(timeout=20)) == 7
    described = server.client().create_rest_client().get_sampler(_sampler_of(trainer, server)).result(timeout=20)
    assert (described.base_model, described.model_path) == ("fake/model", path)


def _sampler_of(trainer: tinker.TrainingClient, server: Running) -> str:
    session_id = trainer.model_id.split(":")[0]
    (sampler_id,) = server.get(f"sessions/{session_id}").json()["sampler_ids"]
    return sampler_id


def test_load_state_takes_the_weights_alone(trainer: tinker.TrainingClient, server: Running):
    trainer.forward_backward([datum()], "cross_entropy")
    trainer.optim_step(types.AdamParams(learning_rate=5.0)).result(timeout=20)
    path = trainer.save_state("kept").result(timeout=20).path
    other = server.client().create_lora_training_client(base_model="fake/model", rank=4).result()
    assert other.load_state(path).result(timeout=20).path == path
    adapter = server.engine.adapters[other.model_id]
    assert (adapter.w, adapter.step) == (5.0, 0)


def test_copies_belong_to_a_session_of_their_own(trainer: tinker.TrainingClient, server: Running):
    path = trainer.save_state("kept").result(timeout=20).path
    copied = server.client(project_id="archive").copy_weights(path).result(timeout=20)
    assert copied.endswith("/weights/kept")
    assert copied != path


def test_a_traced_loss_says_what_it_reads(server: Running, torch: Any):
    def squared(logprobs, weights):
        return (weights * torch.square(logprobs)).sum(), {}

    loss = server.client().create_custom_loss(squared, {"logprobs": 1, "weights": 1}).result(timeout=20)
    assert loss.input_names == ("weights",)
    assert loss.key


def test_reports_under_their_old_names(server: Running):
    rest = server.client().create_rest_client()
    day = datetime(2030, 1, 1, tzinfo=UTC)
    with pytest.warns(FutureWarning):
        assert rest.get_audit_log(event_type="all", day=day.date()).result(timeout=20).entries == []
    with pytest.warns(FutureWarning):
        assert rest.get_billing_usage(day, day.replace(hour=1)).result(timeout=20).data == []
    with pytest.warns(FutureWarning):
        assert rest.get_current_checkpoint_storage_usage().result(timeout=20).data == []


def test_what_asks_no_server_works_without_one(trainer: tinker.TrainingClient, server: Running):
    service = server.client()
    assert service.get_console_url().startswith("https://")
    assert trainer.model_id.split(":")[0] in trainer.get_console_url()


def test_a_custom_loss_runs_on_the_client(trainer: tinker.TrainingClient, torch: Any):
    def squares(data, logprobs):
        loss = sum(torch.square(row).sum() for row in logprobs)
        return loss, {"rows": len(data)}

    trainer.forward_backward([datum()], "cross_entropy")
    trainer.optim_step(types.AdamParams(learning_rate=2.0))  # logprobs are now -2 everywhere
    metrics = trainer.forward_backward_custom([datum()], squares).result(timeout=20).metrics
    assert (metrics["loss:sum"], metrics["rows"]) == (12.0, 1)


def test_a_sampler_finds_its_tokenizer_by_the_base_models_name(server: Running, tmp_path, monkeypatch):
    make_tokenizer().save_pretrained(tmp_path / "fake/model")
    monkeypatch.chdir(tmp_path)  # a folder of that name goes before the hub
    sampler = server.client().create_sampling_client(base_model="fake/model").result()
    assert sampler.get_tokenizer().decode([1]) == "<|im_start|>"
