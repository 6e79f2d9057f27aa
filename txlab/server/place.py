"""The place of a request in its model's order, read from a body that is damaged or of a wrong form."""

from __future__ import annotations

import io
from contextlib import suppress

import zstandard
from pydantic import ValidationError

from txlab.server.wire.base import SeqId, WireModel

HEAD_BYTES = 4096  # of a protobuf body: model_id and seq_id are its first fields
MAX_INT32 = 2**31 - 1


class _Place(WireModel):
    """Fields that every JSON body of a model's requests has."""

    model_id: str
    seq_id: SeqId


def read_place(body: bytes, zstd: bool = False) -> tuple[str, int] | None:
    """Read model_id and seq_id of a body that is JSON or protobuf, damaged perhaps; None where it has none."""
    if is_json(body):
        with suppress(ValidationError):
            place = _Place.model_validate_json(body)
            return place.model_id, place.seq_id
        return None
    with suppress(zstandard.ZstdError, IndexError, UnicodeDecodeError):
        return _protobuf_place(zstandard.ZstdDecompressor().stream_reader(body).read(HEAD_BYTES) if zstd else body)
    return None


def is_json(body: bytes) -> bool:
    """Whether a body is a JSON object; the bytes that one begins with never begin a protobuf message of ours."""
    return body[:64].lstrip().startswith(b"{")


def _protobuf_place(message: bytes) -> tuple[str, int] | None:
    """Read fields 1 and 2 of a ForwardBackwardRequest, which need not be whole. IndexError where it ends too early."""
    stream = io.BytesIO(message)
    model_id = b""
    while True:
        match _varint(stream):
            case 0x0A:  # field 1, with its length before it
                model_id = stream.read(_varint(stream))
            case 0x10:  # field 2, a number
                seq_id = _varint(stream)
                return (model_id.decode(), seq_id) if model_id and 1 <= seq_id <= MAX_INT32 else None
            case _:
                return None


def _varint(stream: io.BytesIO) -> int:
    value = shift = 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
