"""The codec against the SDK's own messages: what it encodes we decode, what we encode it decodes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tinker import types
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output, deserialize_sample_response

from txlab.engine.requests import ForwardBackwardResult, RequestError, SampledSequence, SampleResult, TopLogprobs
from txlab.server import tinker_wire_pb2 as pb
from txlab.server.errors import ApiError
from txlab.server.proto import encode_pass, encode_sample, parse_pass, to_forward_backward


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
    np.testing.assert_array_equal(request.data[0].inputs["weights"], np.array([0, 0.5, 0, 2], np.float32))


def test_inconsistent_sparse_tensor_is_refused():
    weights = csr(np.array([0.5, 2.0], np.float32), [1, 3], [0, 0], [4, 1])
    with pytest.raises(RequestError, match=r"data\[0\].*'weights'.*CSR tensor of 3 rows"):
        decode(datum([1, 2, 3], target_tokens=[2, 3, 4], weights=weights))


def test_several_targets_per_position_are_refused_for_now():
    many = types.TensorData(data=np.arange(6), dtype="int64", shape=[3, 2])
    with pytest.raises(RequestError, match=r"target_tokens.*\[3, 2\].*not supported yet"):
        decode(datum([1, 2, 3], target_tokens=many))


def test_integer_weights_become_floats():
    request = decode(
        datum([1], target_tokens=[2], my_input=types.TensorData(data=np.array([3]), dtype="int64", shape=[1]))
    )
    assert request.data[0].inputs["my_input"].dtype == np.float32


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


def test_prompt_scores_are_absent_unless_asked_for():
    response = deserialize_sample_response(encode_sample(SampleResult(())))
    assert response.prompt_logprobs is None
    assert response.topk_prompt_logprobs is None


def test_our_descriptors_leave_room_for_the_sdks():
    """In this process the SDK's came first; here ours do."""
    order = "import txlab.server.tinker_wire_pb2, tinker.proto.tinker_public_pb2"
    subprocess.run([sys.executable, "-c", order], check=True)
