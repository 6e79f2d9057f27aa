"""Protobuf bodies to the engine's requests, and its results back. Arrays are viewed or copied whole, never by token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from txlab.engine.requests import (
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    RequestError,
    SampledSequence,
    SampleResult,
    TopLogprobs,
)
from txlab.server import tinker_wire_pb2 as pb
from txlab.server.errors import ApiError

DTYPES: dict[int, np.dtype] = {pb.DTYPE_FLOAT32: np.dtype("<f4"), pb.DTYPE_INT64: np.dtype("<i8")}
INT32 = np.dtype("<i4")
INT64 = np.dtype("<i8")


# ------------------------------------------------------------------------------- forward_backward


def parse_pass(body: bytes) -> pb.ForwardBackwardRequest:
    """Parse a forward_backward body; ApiError where it is not protobuf or names no model and place in its order."""
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise ApiError(400, f"the body is not a protobuf ForwardBackwardRequest: {error}") from None
    if not message.model_id or message.seq_id < 1:
        raise ApiError(400, f"model_id {message.model_id!r}, seq_id {message.seq_id}: expected an id, and 1 or more")
    return message


def to_forward_backward(message: pb.ForwardBackwardRequest) -> ForwardBackward:
    """Convert a parsed body; RequestError names the datum and the field that cannot be read."""
    return ForwardBackward(
        model_id=message.model_id,
        seq_id=message.seq_id,
        data=tuple(_datum(datum, f"data[{index}]") for index, datum in enumerate(message.data)),
        loss=message.loss_fn,
        loss_config=_loss_config(message),
        backward=not message.forward_only,
    )


def _loss_config(message: pb.ForwardBackwardRequest) -> dict[str, Any]:
    if not message.loss_fn_config_v2:
        return dict(message.loss_fn_config)
    return {
        name: value.text if value.HasField("text") else value.number
        for name, value in message.loss_fn_config_v2.items()
    }


def _datum(datum: pb.Datum, where: str) -> Datum:
    tokens = _tokens(datum.model_input, f"{where}.model_input")
    inputs = {
        name: _vector(tensor, len(tokens), f"{where}.loss_fn_inputs[{name!r}]")
        for name, tensor in datum.loss_fn_inputs.items()
    }
    if "target_tokens" not in inputs:
        raise RequestError(f"{where}.loss_fn_inputs lacks 'target_tokens': the token that each position predicts")
    targets = inputs.pop("target_tokens")
    if targets.dtype != np.int64:
        raise RequestError(f"{where}.loss_fn_inputs['target_tokens'] has dtype {targets.dtype}: expected int64")
    return Datum(
        tokens, narrow(targets), {name: values.astype(np.float32, copy=False) for name, values in inputs.items()}
    )


def _tokens(chunks: Iterable[pb.Chunk], where: str) -> np.ndarray:  # (N,) int32
    parts = []
    for index, chunk in enumerate(chunks):
        if not chunk.HasField("encoded_text"):
            raise RequestError(
                f"{where}.chunks[{index}] is {chunk.WhichOneof('chunk')}: this model reads text tokens only"
            )
        parts.append(_array(chunk.encoded_text.tokens, INT32, f"{where}.chunks[{index}]"))
    return np.concatenate(parts) if parts else np.zeros(0, INT32)


def _vector(tensor: pb.Tensor, length: int, where: str) -> np.ndarray:  # (N,) float32 or int64
    """Read a tensor of shape [N], or [N, 1]; more targets per position are refused."""
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise RequestError(f"{where} has dtype {pb.DType.Name(tensor.dtype)}: expected float32 or int64")
    shape = tuple(tensor.shape)
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise RequestError(f"{where} has shape {list(shape)}: more than one target per position is not supported yet")
    if tensor.HasField("sparse_csr"):
        return _densify(tensor.sparse_csr, dtype, length, where)
    return _array(tensor.dense, dtype, where)


def _densify(csr: pb.SparseCsr, dtype: np.dtype, length: int, where: str) -> np.ndarray:  # (N,)
    """Spread a CSR column over its N rows; unlisted cells are 0."""
    values = _array(csr.values, dtype, where)  # (nnz,)
    starts = _array(csr.crow_indices, INT64, where)  # (N + 1,)
    columns = _array(csr.col_indices, INT64, where)  # (nnz,)
    counts = np.diff(starts)
    fits = len(starts) == length + 1 and starts[0] == 0 and starts[-1] == len(values) == len(columns)
    if not fits or counts.min(initial=0) < 0 or counts.max(initial=0) > 1 or columns.any():
        raise RequestError(f"{where} is no CSR tensor of {length} rows and one column")
    dense = np.zeros(length, dtype)
    dense[counts == 1] = values
    return dense


def _array(data: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise RequestError(f"{where} has {len(data)} bytes, which is no whole number of {dtype} values")
    return np.frombuffer(data, dtype)


def narrow(tokens: np.ndarray) -> np.ndarray:
    """Return token ids as int32 where they fit; others stay, for the vocabulary check to name them."""
    narrowed = tokens.astype(np.int32)
    return narrowed if np.array_equal(narrowed, tokens) else tokens


def encode_pass(result: ForwardBackwardResult) -> bytes:
    """Encode logprobs, each (N,), and metrics as a ForwardBackwardOutput."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=dict(result.metrics))
    record = message.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(result.logprobs))
    field = record.fields["logprobs"]
    field.dtype = pb.DTYPE_FLOAT32
    field.data = b"".join(_float32(logprobs) for logprobs in result.logprobs)
    lengths = [4 * len(logprobs) for logprobs in result.logprobs]
    field.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(INT64).tobytes()
    return message.SerializeToString()


# --------------------------------------------------------------------------------------- sampling


def sample_bytes(result: SampleResult) -> int:
    """Estimate the encoded size, with some weight for each sequence's own cost."""
    tokens = sum(len(sequence.tokens) for sequence in result.sequences)
    top = 0 if result.topk_prompt_logprobs is None else result.topk_prompt_logprobs.token_ids.size
    return 8 * (tokens + top) + 100 * len(result.sequences)


def encode_sample(result: SampleResult) -> bytes:
    """Encode a SampleResponse."""
    message = pb.SampleResponse(
        sequences=[_sequence(sequence) for sequence in result.sequences],
        prompt_cache_hit_tokens=result.prompt_cache_hit_tokens,
    )
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = _float32(result.prompt_logprobs)
    if result.topk_prompt_logprobs is not None:
        message.topk_prompt_logprobs.CopyFrom(_top_logprobs(result.topk_prompt_logprobs))
    return message.SerializeToString()


def _sequence(sequence: SampledSequence) -> pb.SampledSequence:
    return pb.SampledSequence(
        stop_reason=pb.STOP_REASON_STOP if sequence.stop_reason == "stop" else pb.STOP_REASON_LENGTH,
        tokens=sequence.tokens.astype(INT32).tobytes(),
        logprobs=_float32(sequence.logprobs),
    )


def _top_logprobs(top: TopLogprobs) -> pb.TopkLogprobs:
    length, k = top.token_ids.shape
    return pb.TopkLogprobs(
        token_ids=top.token_ids.astype(INT32).tobytes(), logprobs=_float32(top.logprobs), k=k, length=length
    )


def _float32(array: np.ndarray) -> bytes:
    return array.astype("<f4", copy=False).tobytes()
