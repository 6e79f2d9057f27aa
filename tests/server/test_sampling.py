"""What asample takes and gives, over HTTP and through the SDK, whose answers the fake engine makes up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tinker
from tinker import types

from tests.server.test_api import base_sampler, request_id, sample

PROMPT = types.ModelInput.from_ints([1, 2, 3])
SHORT = types.SamplingParams(max_tokens=2)


def dense(*rows, **fields):
    shape = [len(rows), len(rows[0]) if rows else 0]
    return {"data": [id for row in rows for id in row], "dtype": "int64", "shape": shape} | fields


def csr(data, starts, columns, shape=(2, 2)):
    indices = {"sparse_crow_indices": starts, "sparse_col_indices": columns}
    return {"data": data, "dtype": "int64", "shape": list(shape)} | indices


def image(kind):
    return {"prompt": {"chunks": [{"type": kind, "data": "", "location": "x", "format": "png"}]}}


@pytest.fixture
def sampler(server):
    return server.client().create_sampling_client(base_model="fake/model").result()


@pytest.mark.parametrize(
    ("fields", "mention"),
    [
        ({"sampling_params": {"stop": [True]}}, "stop"),
        ({"sampling_params": {"stop": ["a", 1]}}, "stop"),
        ({"sampling_params": {"stop": [""]}}, "stop holds an empty string"),
        ({"sampling_params": {"stop": [100]}}, "stop token 100"),
        ({"sampling_params": {"temperature": float("nan")}}, "temperature"),
        ({"sampling_params": {"temperature": float("inf")}}, "temperature"),
        ({"sampling_params": {"top_p": float("nan")}}, "top_p"),
        ({"sampling_params": {"top_k": 0}}, "top_k"),
        ({"sampling_params": {"max_tokens": 4094}}, "context"),
        ({"sampling_params": {"seed": -(2**63) - 1}}, "seed"),
        ({"num_samples": 1025}, "num_samples"),
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs is -1"),
        ({"topk_prompt_logprobs": 101}, "topk_prompt_logprobs is 101"),
        ({"topk_sample_logprobs": 101}, "topk_sample_logprobs is 101"),
        (
            {"topk_sample_logprobs": 100, "num_samples": 1000, "sampling_params": {"max_tokens": 1000}},
            "topk_sample_logprobs is 100, for 1000000 tokens",
        ),
        ({"prompt_alt_tokens_k": -2}, "prompt_alt_tokens_k is -2"),
        ({"prompt_alt_tokens_k": 2**17}, "prompt_alt_tokens_k is 131072, for 3 tokens"),
        ({"prompt_logprobs_last_n": 1}, "prompt_logprobs_last_n needs prompt_logprobs"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 0}, "prompt_logprobs_last_n is 0"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 3}, "prompt_logprobs_last_n is 3"),
        ({"target_prompt_logprobs": dense([1])}, "target_prompt_logprobs has shape [1, 1]"),
        ({"target_prompt_logprobs": dense([1], [2], shape=[2])}, "target_prompt_logprobs.shape"),
        ({"target_prompt_logprobs": dense([1], [2], shape=[2, 10**9])}, "2000000000 cells"),
        ({"target_prompt_logprobs": dense([1], [2], shape=[2, 2])}, "2 values: expected 4"),
        ({"target_prompt_logprobs": dense([], [])}, "target_prompt_logprobs has shape [2, 0]"),
        ({"target_prompt_logprobs": dense([1], [2], dtype="float32")}, "target_prompt_logprobs.dtype"),
        ({"target_prompt_logprobs": dense([1], [-2])}, "target_prompt_logprobs[1, 0] is -2"),
        ({"target_prompt_logprobs": dense([1], [100])}, "target_prompt_logprobs[1, 0] is 100"),
        ({"target_prompt_logprobs": dense([1], [2**70])}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": dense([-1], [-1])}, "names no token"),
        ({"target_prompt_logprobs": csr([5], [0, 1], [0])}, "expected 3 row starts"),
        ({"target_prompt_logprobs": csr([5], [0, 1, 2], [0])}, "row starts"),
        ({"target_prompt_logprobs": csr([5, 6], [0, 2, 1], [0])}, "row starts"),
        ({"target_prompt_logprobs": csr([5], [0, 0, 1], [2])}, "columns 0 … 1"),
        ({"target_prompt_logprobs": csr([5, 6], [0, 2, 2], [1, 0])}, "rise within each row"),
        ({"target_prompt_logprobs": csr([5, 6], [0, 1, 1], [0])}, "lists 1 cells and has 2 values"),
        ({"prompt": {"chunks": [{"type": "encoded_text", "tokens": [True]}]}}, "tokens"),
        (image("image"), "prompt.chunks[0] is image"),
        (image("image_asset_pointer"), "prompt.chunks[0] is image_asset_pointer"),
        (image("dmel"), "prompt.chunks[0] is dmel"),
        ({"seq_id": None}, "seq_id"),
        ({"sampling_session_id": None}, "sampling_session_id"),
        ({"sampling_session_id": None, "model_path": "tinker://a/sampler_weights/b"}, "create_sampling_session"),
        ({"sampling_session_id": None, "base_model": "no/such"}, "'no/such'"),
    ],
)
def test_bad_values_are_refused_at_the_door_by_name(server, fields, mention):
    body = sample(base_sampler(server, server.session()), **fields)
    response = server.post("asample", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 404, 422)
    assert mention in response.json()["detail"]
    assert server.engine.log == []


def test_a_request_may_name_the_base_model_instead_of_a_sampler(server):
    body = sample(None, base_model="fake/model") | {"sampling_session_id": None, "seq_id": None, "num_samples": 2}
    first, second = (server.post("asample", body).json() for _ in range(2))
    assert first["request_id"] != second["request_id"]
    assert len({*first["sample_sequence_ids"], *second["sample_sequence_ids"]}) == 4
    assert server.retrieve(first["request_id"]).headers["content-type"] == "application/x-protobuf"
    assert server.engine.log[0].snapshot_id is None


def test_nulls_are_what_absent_fields_are(server):
    body = sample(base_sampler(server, server.session()), prompt_logprobs=None, record_stability_info=None)
    server.retrieve(request_id(server.post("asample", body)))
    assert server.engine.log[0].prompt_logprobs is False


def test_seeds_and_seq_ids_of_64_bits(server):
    sampler_id = base_sampler(server, server.session())
    for i, seed in enumerate((-(2**63), -1, 0, 2**64 - 1)):
        body = sample(sampler_id, 10**18 + i, sampling_params={"seed": seed})
        server.retrieve(request_id(server.post("asample", body)))
        assert server.engine.log[-1].params.seed == seed


def test_sdk_gets_the_likeliest_tokens_of_samples(sampler):
    response = sampler.sample(PROMPT, 2, SHORT, topk_sample_logprobs=3).result(timeout=20)
    assert [s.topk_logprobs for s in response.sequences] == [[[(1, 0.0)] * 3] * 2] * 2
    assert sampler.sample(PROMPT, 1, SHORT).result(timeout=20).sequences[0].topk_logprobs is None


def test_sdk_gets_scores_of_dense_targets(server, sampler):
    wanted = types.TensorData.from_numpy(np.array([[5, -1], [-1, 7]]))
    result = sampler.sample(PROMPT, 1, SHORT, target_prompt_logprobs=wanted).result(timeout=20).target_prompt_logprobs
    assert (result.dtype, list(result.shape), result.sparse_crow_indices) == ("float32", [2, 2], None)
    np.testing.assert_array_equal(result.to_numpy(), [[-5, 0], [0, -7]])
    np.testing.assert_array_equal(server.engine.log[0].target_prompt_logprobs, [[5, -1], [-1, 7]])


def test_sdk_gets_scores_of_sparse_targets_in_their_layout(server, sampler):
    """A listed cell may be -1 too."""
    wanted = types.TensorData(
        data=[7, 8, -1],
        dtype="int64",
        shape=[2, 5],
        sparse_crow_indices=[0, 2, 3],
        sparse_col_indices=[1, 4, 0],
    )
    result = sampler.sample(PROMPT, 1, SHORT, target_prompt_logprobs=wanted).result(timeout=20).target_prompt_logprobs
    assert list(result.data) == [-7, -8, 0]
    assert (result.dtype, list(result.shape)) == ("float32", [2, 5])
    assert (result.sparse_crow_indices, result.sparse_col_indices) == ([0, 2, 3], [1, 4, 0])
    np.testing.assert_array_equal(
        server.engine.log[0].target_prompt_logprobs, [[-1, 7, -1, -1, 8], [-1, -1, -1, -1, -1]]
    )


def test_sdk_gets_alternatives(sampler):
    alts = sampler.sample(PROMPT, 1, SHORT, prompt_alt_tokens_k=4).result(timeout=20).prompt_alt_tokens
    assert (alts.tokens.dtype, alts.logprobs.dtype) == ("int64", "float32")
    assert list(alts.tokens.shape) == list(alts.logprobs.shape) == [2, 4]


def test_sdk_gets_the_end_of_a_prompt_scored(sampler):
    assert sampler.compute_logprobs(PROMPT, prompt_logprobs_last_n=1).result(timeout=20) == [None, None, 0.0]


def traced(sequence: types.SampledSequence) -> types.Datum:
    """A sample to train on, and where each of its tokens came from, as the cookbook makes it."""
    prompt, sampled = PROMPT.length, len(sequence.tokens)
    inputs = {
        "target_tokens": [0] * (prompt - 1) + sequence.tokens,
        "logprobs": [0.0] * (prompt - 1) + sequence.logprobs,
        "advantages": [0.0] * (prompt - 1) + [1.0] * sampled,
    }
    tokens = PROMPT.append(types.EncodedTextChunk(tokens=sequence.tokens[:-1]))
    name = sequence.sequence_id
    return types.Datum(model_input=tokens, loss_fn_inputs=inputs).with_provenance(
        model_input=[
            types.PromptProvenanceSpan(sequence_id=name, length=prompt),
            types.SampledProvenanceSpan(sequence_id=name, length=sampled - 1),
        ],
        loss_fn_inputs=[
            types.PromptProvenanceSpan(sequence_id=name, offset=1, length=prompt - 1),
            types.SampledProvenanceSpan(sequence_id=name, length=sampled),
        ],
    )


@pytest.fixture
def trainer(server) -> tinker.TrainingClient:
    return server.client().create_lora_training_client("fake/model", rank=8).result(timeout=20)


def test_a_sampler_that_should_record_stability_info_samples_as_any_other(server, trainer):
    plain = trainer.save_weights_and_get_sampling_client().result(timeout=20)
    recording = trainer.save_weights_and_get_sampling_client(record_stability_info=True).result(timeout=20)
    first, second = (sampler.sample(PROMPT, 2, SHORT).result(timeout=20).sequences for sampler in (plain, recording))
    assert [s.tokens for s in first] == [s.tokens for s in second]
    assert [s.logprobs for s in first] == [s.logprobs for s in second]
    assert len({s.sequence_id for s in second}) == 2


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
def test_stable_reinforce_is_refused_by_name_and_the_losses_that_it_names_take_the_same_data(server, trainer, loss):
    sampler = trainer.save_weights_and_get_sampling_client(record_stability_info=True).result(timeout=20)
    data = [traced(sequence) for sequence in sampler.sample(PROMPT, 2, SHORT).result(timeout=20).sequences]
    with pytest.raises(
        tinker.RequestFailedError, match=f"'stable_reinforce' is not served: .*{loss}.*loss_fn="
    ) as error:
        trainer.forward_backward(data, "stable_reinforce", {"kl_coeff": 0.01}).result(timeout=20)
    assert str(error.value.category).endswith("user")
    assert len(trainer.forward_backward(data, loss).result(timeout=20).loss_fn_outputs) == 2
