"""What a client asks before anything else."""

from __future__ import annotations

from txlab.server.wire.base import WireModel


class ClientConfig(WireModel):
    """Flags for the client. Bounds the samples in flight: each holds a socket, at both ends of one process."""

    sample_max_concurrent_requests: int = 256


class DynamicConfig(WireModel):
    """Flags that the client asks for again and again."""

    refresh_interval_sec: int = 300


class SupportedModel(WireModel):
    """A base model that is served."""

    model_name: str
    max_context_length: int
    trainable: bool = True
    sampleable: bool = True


class Capabilities(WireModel):
    """What this server has."""

    supported_models: list[SupportedModel]
