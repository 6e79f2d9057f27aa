"""The codec against the SDK's own messages: what it encodes we decode, what we encode it decodes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tinker import types
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output, deserialize_sample_response

from txlab.engine.requests import (
    AltTokens,
    ForwardBackwardResult,
    RequestError,
    SampledSequence,
    SampleResult,
    TopLogprobs,
)
from txlab.server import tinker_wire_pb2 as pb
from txlab.server.csr import Csr
from txlab.server.errors import ApiError
from txlab.server.proto import encode_pass, encode_sample, parse_pass, sample_bytes, to_forward_backward


def sdk_body(*data: types.Datum, loss_fn="cross_entropy", config=None, forward_only=False) -> bytes:
    request = types.ForwardBackwardRequest(
        forward_backward_input=types.ForwardBackwardInput(data=list(data), loss_fn=loss_fn, loss_fn_config=config),
        model_id="s:train:0",
        seq_id=7,
    )
    message = forward_backward_request_to_proto(request)
    message.forward_only = forward_only
    return message.SerializeToString()


def datum(tokens, **inputs) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints(list(tokens)), loss_fn_inputs=inputs)


def decode(*data, **kwargs):
    return to_forward_backward(parse_pass(sdk_body(*data, **kwargs)))


def test_pass_carries_everything_the_sdk_sends():
    chunks = [types.EncodedTextChunk(tokens=[1, 2]), types.EncodedTextChunk(tokens=[3])]
    inputs = {"target_tokens": np.array([2, 3, 4]), "weights": np.array([0.5, 1, 2], np.float32)}
    first = types.Datum(model_input=types.ModelInput(chunks=chunks), loss_fn_inputs=inputs)
    request = decode(first, datum([9], target_tokens=[8]), loss_fn="ppo", config={"clip_low_threshold": 0.9})

    assert (request.model_id, request.seq_id, request.loss, request.backward) == ("s:train:0", 7, "ppo", True)
    assert request.loss_config == {"clip_low_threshold": 0.9}
    np.testing.assert_array_equal(request.data[0].tokens, [1, 2, 3])
    np.testing.assert_array_equal(request.data[0].targets, [2, 3, 4])
    np.testing.assert_array_equal(request.data[0].inputs["weights"], np.array([0.5, 1, 2], np.float32))
    assert request.data[0].tokens.dtype == request.data[0].targets.dtype == np.int32
    assert request.data[1].inputs == {}


def test_forward_is_a_pass_without_gradients():
    assert not decode(datum([1], target_tokens=[2]), forward_only=True).backward


def test_loss_config_of_older_sdks_and_text_values():
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn_config={"beta": 0.5})
    assert to_forward_backward(message).loss_config == {"beta": 0.5}
    assert decode(datum([1], target_tokens=[2]), config={"loss_id": "abc"}).loss_config == {"loss_id": "abc"}


def csr(values, rows, columns, shape, dtype="float32") -> types.TensorData:
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))]).tolist()
    return types.TensorData(
        data=np.asarray(values), dtype=dtype, shape=shape, sparse_crow_indices=starts, sparse_col_indices=columns
    )


def test_sparse_column_is_spread_with_zeros():
    weights = csr(np.array([0.5, 2.0], np.float32), [1, 3], [0, 0], [4, 1])
    request = decode(datum([1, 2, 3, 4], target_tokens=[2, 3, 4, 5], weights=weights))
    np.testing.assert_array_equal(request.data[0].inputs["weights"], np.array([[0], [0.5], [0], [2]], np.float32))


def test_several_targets_dense_and_sparse_with_patterns_of_their_own():
    """Token 0 and weight 0 are both "unlisted": each tensor is spread by itself."""
    targets, weights = np.array([[7, 0, 9], [0, 0, 0], [4, 5, 0]]), np.array([[0, 0.5, 1], [0, 0, 0], [2, 0, 0]])
    dense = {
        "target_tokens": types.TensorData(data=targets.ravel(), dtype="int64", shape=[3, 3]),
        "weights": types.TensorData(data=weights.ravel().astype(np.float32), dtype="float32", shape=[3, 3]),
    }
    sparse = {}
    for name, array, dtype in (("target_tokens", targets, "int64"), ("weights", weights.astype(np.float32), "float32")):
        rows, columns = np.nonzero(array)
        sparse[name] = csr(array[rows, columns], rows, columns.tolist(), [3, 3], dtype)
    for tensors in (dense, sparse):
        got = decode(datum([1, 2, 3], **tensors)).data[0]
        np.testing.assert_array_equal(got.targets, targets)
        np.testing.assert_array_equal(got.inputs["weights"], weights)
        assert (got.targets.dtype, got.inputs["weights"].dtype) == (np.int32, np.float32)


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (csr(np.ones(2, np.float32), [1, 3], [0, 0], [4]), "expected .N, K."),
        (csr(ONE, [1], [2], [3, 2]), "expected columns 0 … 1"),
        (csr(ONE, [1], [-1], [3, 2]), "expected columns 0 … 1"),
        (csr(ONE, [1], [0, 1], [3, 2]), "row starts that rise from 0 to 2"),
        (csr(np.ones(2, np.float32), [1], [0], [3, 2]), "2 values for 1 columns"),
        (
            types.TensorData(data=ONE, dtype="float32", shape=[1, 1, 1]),
            r"shape \[1, 1, 1\]: expected \[N\] or \[N, K\]",
        ),
        (csr(ONE, [0], [0], [1, 2**40]), "of at most"),
    ],
)
def test_tensor_that_is_none_is_refused(tensor, message):
    with pytest.raises(RequestError, match=rf"data\[0\].loss_fn_inputs\['weights'\].*{message}"):
        decode(datum([1, 2, 3], target_tokens=[2, 3, 4], weights=tensor))


def test_a_shape_that_its_values_do_not_fill_is_refused():
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=1)
    tensor = message.data.add().loss_fn_inputs["target_tokens"]
    tensor.dtype, tensor.dense = pb.DTYPE_INT64, np.arange(5).tobytes()
    tensor.shape.extend([3, 2])
    with pytest.raises(RequestError, match=r"has 5 values, which do not fill its shape \[3, 2\]"):
        to_forward_backward(message)


def test_inputs_keep_their_dtype():
    request = decode(datum([1], target_tokens=[2], a=types.TensorData(data=np.array([3]), dtype="int64", shape=[1])))
    assert request.data[0].inputs["a"].dtype == np.int64


def test_ids_beyond_32_bits_keep_their_value():
    request = decode(datum([1, 2], target_tokens=[2**40, 5]))
    np.testing.assert_array_equal(request.data[0].targets, [2**40, 5])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (datum([1], weights=[1.0]), r"data\[1\].*'target_tokens'"),
        (datum([1], target_tokens=types.TensorData(data=[1.0], dtype="float32", shape=[1])), "expected int64"),
        (
            types.Datum(
                model_input=types.ModelInput(chunks=[types.ImageChunk(data=b"x", format="png")]), loss_fn_inputs={}
            ),
            r"data\[1\].model_input.chunks\[0\] is image",
        ),
    ],
)
def test_refusal_names_datum_and_field(bad, message):
    with pytest.raises(RequestError, match=message):
        decode(datum([1], target_tokens=[2]), bad)


def test_torn_array_is_refused():
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=1)
    message.data.add().model_input.add().encoded_text.tokens = b"12345"
    with pytest.raises(RequestError, match=r"data\[0\].model_input.chunks\[0\] has 5 bytes"):
        to_forward_backward(message)


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"", pb.ForwardBackwardRequest(model_id="m").SerializeToString()])
def test_body_without_an_address_is_malformed(body):
    with pytest.raises(ApiError) as caught:
        parse_pass(body)
    assert caught.value.status == 400


def test_sdk_reads_a_pass_result():
    rows = (np.array([-0.5, -1.5], np.float32), np.zeros(0, np.float32), np.array([-3], np.float32))
    output = deserialize_forward_backward_output(encode_pass(ForwardBackwardResult(rows, {"loss:sum": 5.0})))
    assert output.metrics == {"loss:sum": 5.0}
    assert [o["logprobs"].shape for o in output.loss_fn_outputs] == [[2], [0], [1]]
    for row, out in zip(rows, output.loss_fn_outputs, strict=True):
        np.testing.assert_array_equal(out["logprobs"].to_numpy(), row)


def test_sdk_reads_logprobs_of_several_targets_in_order():
    """Shapes that differ go into records of their own; one column stays a column."""
    shapes = [(2,), (3,), (2, 3), (1, 3), (2, 1), (4,), (1, 3)]
    rows = tuple(np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes))
    output = deserialize_forward_backward_output(encode_pass(ForwardBackwardResult(rows, {"loss:sum": 5.0})))
    assert [tuple(o["logprobs"].shape) for o in output.loss_fn_outputs] == shapes
    for row, out in zip(rows, output.loss_fn_outputs, strict=True):
        np.testing.assert_array_equal(out["logprobs"].to_numpy().reshape(row.shape), row)


def test_sdk_reads_a_pass_result_of_no_datums():
    assert deserialize_forward_backward_output(encode_pass(ForwardBackwardResult((), {}))).loss_fn_outputs == []


def test_sdk_reads_a_sample_result():
    sequences = (
        SampledSequence(np.array([5, 6], np.int32), np.array([-1, -2], np.float32), "stop"),
        SampledSequence(np.array([7], np.int32), np.array([-3], np.float32), "length"),
    )
    top = TopLogprobs(np.array([[0, 0], [4, 3]], np.int32), np.array([[-99999, -99999], [-0.1, -0.2]], np.float32))
    result = SampleResult(sequences, np.array([np.nan, -0.5], np.float32), top, prompt_cache_hit_tokens=3)
    response = deserialize_sample_response(encode_sample(result))

    assert [(s.tokens, s.logprobs, s.stop_reason) for s in response.sequences] == [
        ([5, 6], [-1.0, -2.0], "stop"),
        ([7], [-3.0], "length"),
    ]
    assert response.prompt_logprobs == [None, -0.5]
    assert response.topk_prompt_logprobs[0] is None
    assert [token for token, _ in response.topk_prompt_logprobs[1]] == [4, 3]
    assert response.prompt_cache_hit_tokens == 3


def test_sdk_reads_every_score_of_a_sample_result():
    ids, logprobs = np.array([[5, 6], [7, 8]], np.int32), np.array([[-1, -2], [-3, -4]], np.float32)
    sequence = SampledSequence(
        np.array([5, 7], np.int32), np.array([-1, -3], np.float32), "stop", TopLogprobs(ids, logprobs)
    )
    result = SampleResult((sequence,), target_prompt_logprobs=logprobs, prompt_alt_tokens=AltTokens(ids, logprobs))
    response = deserialize_sample_response(encode_sample(result))
    assert response.sequences[0].topk_logprobs == [[(5, -1.0), (6, -2.0)], [(7, -3.0), (8, -4.0)]]
    np.testing.assert_array_equal(response.target_prompt_logprobs.to_numpy(), logprobs)
    np.testing.assert_array_equal(response.prompt_alt_tokens.tokens.to_numpy(), ids)
    np.testing.assert_array_equal(response.prompt_alt_tokens.logprobs.to_numpy(), logprobs)
    assert sample_bytes(result) > sample_bytes(SampleResult((sequence,)))

    sparse = deserialize_sample_response(
        encode_sample(result, Csr(np.array([0, 0, 1]), np.array([1])))
    ).target_prompt_logprobs
    assert (list(sparse.data), sparse.sparse_crow_indices, sparse.sparse_col_indices) == ([-4.0], [0, 0, 1], [1])


def test_prompt_scores_are_absent_unless_asked_for():
    response = deserialize_sample_response(encode_sample(SampleResult(())))
    assert response.prompt_logprobs is None
    assert response.topk_prompt_logprobs is None
    assert response.target_prompt_logprobs is None
    assert response.prompt_alt_tokens is None


def test_our_descriptors_leave_room_for_the_sdks():
    """In this process the SDK's came first; here ours do."""
    order = "import txlab.server.tinker_wire_pb2, tinker.proto.tinker_public_pb2"
    subprocess.run([sys.executable, "-c", order], check=True)
