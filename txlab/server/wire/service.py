"""What a client asks before anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field

from txlab.server.wire.base import WireModel, example


class AskConfig(WireModel):
    """A client that is about to begin."""

    model_config = example(sdk_version="0.38.0")

    sdk_version: Annotated[str | None, Field(description="Version of the client.")] = None


class ClientConfig(WireModel):
    """Flags that a client reads once. Settings override them; flags that are not here keep the SDK's defaults."""

    pjwt_auth_enabled: Annotated[
        bool, Field(description="Off: a token does nothing that the key does not, but that whoami() can read it.")
    ] = False
    proto_compress_fwdbwd: Annotated[
        bool, Field(description="On for clients on other machines: on the same one zstd costs more than it saves.")
    ] = False
    parallel_fwdbwd_chunks: Annotated[
        bool, Field(description="On: the next chunk is decoded while one is trained on.")
    ] = True
    fwdbwd_max_chunk_len: Annotated[
        int, Field(description="Datums of one request, as the SDK has it: the size in bytes bounds the work.")
    ] = 1024
    fwdbwd_max_chunk_bytes_count: Annotated[
        int, Field(description="A fifth of the SDK's: a request is trained on whole before it is another model's turn.")
    ] = 1_000_000
    sample_use_retrieve_futures: Annotated[
        bool,
        Field(
            description="On: one poll waits for all samples of a sampler. Without it 256 of them take most of the 1024 "
            "files that a process may open, as both ends of a socket are in one; one sample alone is some ms faster."
        ),
    ] = True
    sample_max_concurrent_requests: Annotated[
        int, Field(description="Samples in flight without that poll: each holds a socket, at both ends of one process.")
    ] = 256
    custom_loss_server_side: Annotated[
        bool, Field(description="On: one request for each pass, and no logprobs that travel to the client and back.")
    ] = True
    sample_join_sampling_session: Annotated[
        bool, Field(description="On: the server numbers the clones of a sampler, so that two never share a number.")
    ] = True


class DynamicConfig(WireModel):
    """Flags that a client asks for again and again."""

    refresh_interval_sec: int = 300
    sample_cancel_enabled: Annotated[
        bool, Field(description="On: a sample that nobody waits for any more leaves its place to others.")
    ] = True


Config = TypeVar("Config", ClientConfig, DynamicConfig)


def config(kind: type[Config], flags: Mapping[str, Any]) -> Config:
    """Return the flags of a kind, with those of ``flags`` that are of this kind in the place of the defaults."""
    return kind(**{name: value for name, value in flags.items() if name in kind.model_fields})


def check_flags(flags: Mapping[str, Any]) -> None:
    """Raise ValueError for a flag that does not exist, or has a value of another type."""
    known = ClientConfig.model_fields.keys() | DynamicConfig.model_fields.keys()
    if unknown := sorted(flags.keys() - known):
        raise ValueError(f"there is no flag {unknown[0]!r}: the flags are {', '.join(sorted(known))}")
    config(ClientConfig, flags)
    config(DynamicConfig, flags)


class SupportedModel(WireModel):
    """A base model that is served."""

    model_name: str
    max_context_length: int
    trainable: bool = True
    sampleable: bool = True


class Capabilities(WireModel):
    """What this server has."""

    supported_models: list[SupportedModel]
