"""The unmodified SDK over a real port."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tinker
from tinker import types

from txlab.engine.requests import ForwardBackward, OptimStep


def datum(value=1, length=4) -> types.Datum:
    tokens = [value] * length
    inputs = {"target_tokens": np.array(tokens), "weights": np.ones(length, np.float32)}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def adam(rate=1.0) -> types.AdamParams:
    return types.AdamParams(learning_rate=rate)


PROMPT = types.ModelInput.from_ints([1, 2, 3])
SHORT = types.SamplingParams(max_tokens=2)


@pytest.fixture
def service(server):
    return server.client()


def train(service, **kwargs) -> tinker.TrainingClient:
    return service.create_lora_training_client(base_model="fake/model", rank=8, **kwargs).result()


def test_create_and_describe(service, server):
    client = train(service)
    assert client.model_id == f"{service.holder.get_session_id()}:train:0"
    info = client.get_info()
    assert (info.lora_rank, info.is_lora, info.model_data.model_name) == (8, True, "fake/model")
    assert info.model_data.tokenizer_id == str(server.engine.base.tokenizer_dir)
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    models = rest.get_server_capabilities().result(timeout=20).supported_models
    assert [(m.model_name, m.max_context_length) for m in models] == [("fake/model", 4096)]


def test_pipelined_training_runs_in_order(service, server):
    client = train(service)
    futures = []
    for _ in range(3):
        futures += [client.forward_backward([datum(), datum()], "cross_entropy"), client.optim_step(adam())]
    futures.append(client.forward([datum(length=3)], "cross_entropy"))
    results = [future.result(timeout=20) for future in futures]
    assert [result.metrics["loss:sum"] for result in results[0::2]] == [0.0, 2 * 8, 4 * 8, 6 * 3]
    assert results[-1].loss_fn_outputs[0]["logprobs"].data == pytest.approx([-6.0] * 3)
    assert [r.seq_id for r in server.engine.log[1:]] == list(range(1, 8))


def test_chunks_are_posted_concurrently_and_merged(service, server):
    client = train(service)
    data = [datum(value) for value in range(50)] * 42  # 2100 datums: three chunks, the first is sent last
    output = client.forward_backward(data, "cross_entropy")
    client.optim_step(adam()).result(timeout=30)
    assert len(output.result(timeout=30).loss_fn_outputs) == 2100
    passes = [request for request in server.engine.log if isinstance(request, ForwardBackward)]
    assert [len(request.data) for request in passes] == [1024, 1024, 52]
    np.testing.assert_array_equal(passes[0].data[3].tokens, [3] * 4)
    assert server.engine.adapters[client.model_id].w == 2100


def test_refused_pass_raises_and_the_pipeline_goes_on(service, server):
    client = train(service)
    good, bad = (
        client.forward_backward([datum()], "cross_entropy"),
        client.forward_backward([datum(500)], "cross_entropy"),
    )
    step = client.optim_step(adam())
    with pytest.raises(tinker.RequestFailedError, match=r"data\[0\].model_input\[0\] is token 500") as caught:
        bad.result(timeout=20)
    assert str(caught.value.category).endswith("user")
    good.result(timeout=20)
    assert step.result(timeout=20).metrics["step"] == 1.0


def test_long_wait_is_polled_through(service, server):
    client = train(service)
    server.engine.gate.clear()
    future = client.optim_step(adam())
    threading.Timer(0.8, server.engine.gate.set).start()  # longer than two polls
    assert future.result(timeout=20).metrics["step"] == 1.0
    assert sum(isinstance(request, OptimStep) for request in server.engine.log) == 1


def test_snapshot_is_sampled_while_training_goes_on(service):
    client = train(service)
    client.forward_backward([datum()] * 5, "cross_entropy")
    client.optim_step(adam())
    sampler = client.save_weights_and_get_sampling_client().result(timeout=20)
    client.forward_backward([datum()] * 5, "cross_entropy")
    client.optim_step(adam()).result(timeout=20)
    response = sampler.sample(PROMPT, 3, SHORT, include_prompt_logprobs=True, topk_prompt_logprobs=2).result(timeout=20)
    assert [sequence.tokens for sequence in response.sequences] == [[5, 5]] * 3
    assert response.sequences[0].logprobs == [-5.0, -5.0]
    assert len({sequence.sequence_id for sequence in response.sequences}) == 3
    assert response.prompt_logprobs == [None, -5.0, -5.0]
    assert response.topk_prompt_logprobs[0] is None
    assert len(response.topk_prompt_logprobs[1]) == 2


def test_base_model_is_sampled(service):
    sampler = service.create_sampling_client(base_model="fake/model").result()
    assert sampler.sample(PROMPT, 1, SHORT).result(timeout=20).sequences[0].tokens == [0, 0]
    assert sampler.compute_logprobs(PROMPT).result(timeout=20) == [None, 0.0, 0.0]


def test_checkpoints_go_from_session_to_session(service, server):
    client = train(service)
    client.forward_backward([datum()] * 5, "cross_entropy")
    client.optim_step(adam())
    path = client.save_state("ck", user_metadata={"k": "v"}).result(timeout=20).path
    sampler_path = client.save_weights_for_sampler("sm").result(timeout=20).path
    assert (path, sampler_path) == (
        f"tinker://{client.model_id}/weights/ck",
        f"tinker://{client.model_id}/sampler_weights/sm",
    )
    service.close("success").result(timeout=20)

    second = server.client()
    resumed = second.create_training_client_from_state_with_optimizer(path).result(timeout=20)
    fresh = second.create_training_client_from_state(path).result(timeout=20)
    assert resumed.get_info().lora_rank == 8
    assert resumed.optim_step(adam()).result(timeout=20).metrics == {"grad_norm": 5.0, "step": 2.0}
    assert fresh.optim_step(adam()).result(timeout=20).metrics == {"grad_norm": 0.0, "step": 1.0}
    assert server.engine.adapters[fresh.model_id].w == 5.0

    sampler = second.create_sampling_client(model_path=sampler_path).result(timeout=20)
    assert sampler.get_base_model() == "fake/model"
    assert sampler.sample(PROMPT, 1, SHORT).result(timeout=20).sequences[0].tokens == [5, 5]


def test_legacy_load_is_the_first_request_of_a_model(service, server):
    client = train(service)
    client.forward_backward([datum()] * 5, "cross_entropy")
    client.optim_step(adam())
    path = client.save_state("ck").result(timeout=20).path
    other = train(service)
    other.load_state_with_optimizer(path).result(timeout=20)
    assert other.optim_step(adam()).result(timeout=20).metrics["step"] == 2.0


def test_name_is_refused_the_second_time(service):
    client = train(service)
    client.save_state("same").result(timeout=20)
    with pytest.raises(tinker.RequestFailedError, match="overwrite"):
        client.save_state("same").result(timeout=20)
    client.save_state("same", overwrite=True).result(timeout=20)


def test_errors_of_creation_are_one_clear_exception(service, server):
    with pytest.raises(tinker.NotFoundError, match="'fake/model'"):
        service.create_lora_training_client(base_model="no/such").result(timeout=20)
    with pytest.raises(tinker.RequestFailedError, match="rank"):
        service.create_lora_training_client(base_model="fake/model", rank=999).result(timeout=20)
    with pytest.raises(tinker.RequestFailedError, match="does not exist"):
        service.create_training_client_from_state("tinker://x/weights/nope").result(timeout=20)
    sampler = service.create_sampling_client(base_model="fake/model").result()
    with pytest.raises(tinker.BadRequestError, match="temperature"):
        sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=1, temperature=-1.0)).result(timeout=20)


def test_wrong_key(server):
    rest = tinker.RestClient
    with pytest.raises(tinker.AuthenticationError, match="TINKER_API_KEY"):
        rest(base_url=server.url, api_key="tml-wrong").get_server_capabilities().result(timeout=20)


def test_compressed_bodies_are_read(service):
    config = service.holder._client_config.model_copy(update={"proto_compress_fwdbwd": True})
    service.holder._constructor_kwargs["_client_config"] = config
    output = train(service).forward([datum(length=300)], "cross_entropy").result(timeout=20)
    assert output.loss_fn_outputs[0]["logprobs"].shape == [300]


def test_with_statement_finishes_the_session(server):
    with server.client() as service:
        train(service)
        assert len(server.engine.adapters) == 1
    server.session()
    assert server.engine.adapters == {}
