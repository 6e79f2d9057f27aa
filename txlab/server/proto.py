"""Protobuf bodies to the engine's requests, and its results back. Arrays are viewed or copied whole, never by token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
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
from txlab.server.csr import Csr, read_csr
from txlab.server.errors import ApiError
from txlab.server.place import is_json
from txlab.server.sdk_version import NEEDED

DTYPES: dict[int, np.dtype] = {pb.DTYPE_FLOAT32: np.dtype("<f4"), pb.DTYPE_INT64: np.dtype("<i8")}
INT32 = np.dtype("<i4")
INT64 = np.dtype("<i8")
MAX_CELLS = 2**26  # of one tensor: a few bytes of CSR may stand for any number of zeros


# ------------------------------------------------------------------------------- forward_backward


def parse_pass(body: bytes) -> pb.ForwardBackwardRequest:
    """Parse a forward_backward body; ApiError where it is not protobuf or names no model and place in its order."""
    if is_json(body):
        raise ApiError(400, f"this pass is JSON, as old SDKs send it, and not protobuf: {NEEDED}")
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
        name: _read_tensor(tensor, f"{where}.loss_fn_inputs[{name!r}]") for name, tensor in datum.loss_fn_inputs.items()
    }
    if "target_tokens" not in inputs:
        raise RequestError(f"{where}.loss_fn_inputs lacks 'target_tokens': the token that each position predicts")
    targets = inputs.pop("target_tokens")
    if targets.dtype != np.int64:
        raise RequestError(f"{where}.loss_fn_inputs['target_tokens'] has dtype {targets.dtype}: expected int64")
    return Datum(tokens, narrow(targets), inputs)


def _tokens(chunks: Iterable[pb.Chunk], where: str) -> np.ndarray:  # (N,) int32
    parts = []
    for index, chunk in enumerate(chunks):
        if not chunk.HasField("encoded_text"):
            raise RequestError(
                f"{where}.chunks[{index}] is {chunk.WhichOneof('chunk')}: this model reads text tokens only"
            )
        parts.append(_array(chunk.encoded_text.tokens, INT32, f"{where}.chunks[{index}]"))
    return np.concatenate(parts) if parts else np.zeros(0, INT32)


def _read_tensor(tensor: pb.Tensor, where: str) -> np.ndarray:  # (N,) or (N, K), float32 or int64
    """Read a tensor of at most two dimensions; one that tells no shape is a vector."""
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise RequestError(f"{where} has dtype {pb.DType.Name(tensor.dtype)}: expected float32 or int64")
    shape = tuple(tensor.shape)
    if len(shape) > 2 or min(shape, default=0) < 0 or math.prod(shape) > MAX_CELLS:
        raise RequestError(f"{where} has shape {list(shape)}: expected [N] or [N, K], of at most {MAX_CELLS} cells")
    if tensor.HasField("sparse_csr"):
        return _densify(tensor.sparse_csr, dtype, shape, where)
    array = _array(tensor.dense, dtype, where)
    if shape and math.prod(shape) != len(array):
        raise RequestError(f"{where} has {len(array)} values, which do not fill its shape {list(shape)}")
    return array.reshape(shape or -1)


def _densify(csr: pb.SparseCsr, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:  # (N, K)
    """Spread a CSR tensor over its cells; unlisted ones are 0."""
    values = _array(csr.values, dtype, where)  # (nnz,)
    if len(shape) != 2:
        raise RequestError(f"{where} is a CSR tensor of shape {list(shape)}: expected [N, K]")
    cells = read_csr(_array(csr.crow_indices, INT64, where), _array(csr.col_indices, INT64, where), shape, where)
    if len(values) != len(cells.columns):
        raise RequestError(f"{where} is a CSR tensor with {len(values)} values for {len(cells.columns)} columns")
    return cells.spread(values, shape[1], 0)


def _array(data: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise RequestError(f"{where} has {len(data)} bytes, which is no whole number of {dtype} values")
    return np.frombuffer(data, dtype)


def narrow(tokens: np.ndarray) -> np.ndarray:
    """Return token ids as int32 where they fit; others stay, for the vocabulary check to name them."""
    narrowed = tokens.astype(np.int32)
    return narrowed if np.array_equal(narrowed, tokens) else tokens


def encode_pass(result: ForwardBackwardResult) -> bytes:
    """Encode logprobs, each (N,) or (N, K), and metrics as a ForwardBackwardOutput: a record per run of equal K."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=dict(result.metrics))
    for trailing_shape, run in groupby(result.logprobs, lambda logprobs: logprobs.shape[1:]):
        rows = [_float32(logprobs) for logprobs in run]
        record = message.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(rows))
        field = record.fields["logprobs"]
        field.dtype = pb.DTYPE_FLOAT32
        field.trailing_shape.extend(trailing_shape)
        field.data = b"".join(rows)
        field.offsets = np.cumsum([0, *map(len, rows)]).astype(INT64).tobytes()
    return message.SerializeToString()


# --------------------------------------------------------------------------------------- sampling


def sample_bytes(result: SampleResult) -> int:
    """Estimate the encoded size, with some weight for each sequence's own cost."""
    targets, alts = result.target_prompt_logprobs, result.prompt_alt_tokens
    tops = [result.topk_prompt_logprobs, *(sequence.topk_logprobs for sequence in result.sequences)]
    numbers = sum(len(sequence.tokens) for sequence in result.sequences)
    numbers += sum(top.token_ids.size for top in tops if top is not None)
    numbers += (0 if targets is None else targets.size) + (0 if alts is None else alts.tokens.size)
    return 8 * numbers + 100 * len(result.sequences)


def encode_sample(result: SampleResult, targets: Csr | None = None) -> bytes:
    """Encode a SampleResponse; ``targets`` are the cells that a sparse target_prompt_logprobs listed."""
    message = pb.SampleResponse(
        sequences=[_sequence(sequence) for sequence in result.sequences],
        prompt_cache_hit_tokens=result.prompt_cache_hit_tokens,
    )
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = _float32(result.prompt_logprobs)
    if result.topk_prompt_logprobs is not None:
        message.topk_prompt_logprobs.CopyFrom(_top_logprobs(result.topk_prompt_logprobs))
    if result.target_prompt_logprobs is not None:
        message.target_prompt_logprobs.CopyFrom(_tensor(result.target_prompt_logprobs, targets))
    if (alts := result.prompt_alt_tokens) is not None:
        message.prompt_alt_tokens.CopyFrom(
            pb.PromptAltTokens(tokens=_tensor(alts.tokens), logprobs=_tensor(alts.logprobs))
        )
    return message.SerializeToString()


def _sequence(sequence: SampledSequence) -> pb.SampledSequence:
    message = pb.SampledSequence(
        stop_reason=pb.STOP_REASON_STOP if sequence.stop_reason == "stop" else pb.STOP_REASON_LENGTH,
        tokens=sequence.tokens.astype(INT32).tobytes(),
        logprobs=_float32(sequence.logprobs),
    )
    if sequence.topk_logprobs is not None:
        message.topk_sampled_logprobs.CopyFrom(_top_logprobs(sequence.topk_logprobs))
    return message


def _tensor(array: np.ndarray, csr: Csr | None = None) -> pb.Tensor:
    """Encode float32 or int32 of any shape, only the listed cells where there is a list."""
    floats = array.dtype == np.float32
    dtype = pb.DTYPE_FLOAT32 if floats else pb.DTYPE_INT32
    values = (array if csr is None else csr.collect(array)).astype("<f4" if floats else INT32).tobytes()
    if csr is None:
        return pb.Tensor(dense=values, dtype=dtype, shape=array.shape)
    starts, columns = csr.starts.astype(INT64).tobytes(), csr.columns.astype(INT64).tobytes()
    sparse = pb.SparseCsr(values=values, crow_indices=starts, col_indices=columns)
    return pb.Tensor(sparse_csr=sparse, dtype=dtype, shape=array.shape)


def _top_logprobs(top: TopLogprobs) -> pb.TopkLogprobs:
    length, k = top.token_ids.shape
    return pb.TopkLogprobs(
        token_ids=top.token_ids.astype(INT32).tobytes(), logprobs=_float32(top.logprobs), k=k, length=length
    )


def _float32(array: np.ndarray) -> bytes:
    return array.astype("<f4", copy=False).tobytes()
