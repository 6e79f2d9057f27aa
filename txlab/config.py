"""Frozen settings, one dataclass per concern: read once at start-up and passed down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
KEY_VARIABLE = "TXLAB_API_KEY"  # a lab's key, where none is asked for: not to be read in a list of processes


def default_root() -> Path:
    """Folder of everything that outlives a kernel: ``$TXLAB_HOME``, else the user's data folder."""
    home = os.environ.get("TXLAB_HOME")
    return Path(home).expanduser() if home else platformdirs.user_data_path("txlab")


def default_cache() -> Path:
    """Folder of what can be fetched or compiled again: ``$TXLAB_CACHE``, else the user's cache folder."""
    cache = os.environ.get("TXLAB_CACHE")
    return Path(cache).expanduser() if cache else platformdirs.user_cache_path("txlab")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which base model, and how it is held on the device."""

    name: str = DEFAULT_MODEL
    dtype: str = "float32"
    max_context: int | None = None  # tokens; None: what the model was trained for
    cache: Path = field(default_factory=default_cache)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How work is cut into device batches."""

    train_tokens: int | None = None  # of the micro-batches on the device, padding included; None: what train_bytes hold
    train_streams: int | None = None  # micro-batches that run side by side, train_tokens in all; None: two on CPU
    train_bytes: int = 1 << 30  # activations kept for a backward pass; longer sequences recompute theirs
    sample_share: float = 0.5  # of the device's time, for sampling while there is training to be done too
    sample_rows: int = 32  # sequences that decode together
    decode_steps: int = 8  # tokens per dispatch while decoding
    cache_bytes: int = 2 << 30  # most memory of the KV cache
    prefix_bytes: int = 512 << 20  # most memory of prompts and conversations that are kept to be continued
    snapshot_bytes: int = 2 << 30  # most memory of snapshots; the least recently used go first
    kept_bytes: int = 1 << 30  # most host memory of past steps to rewind to; the oldest go first; 0: keep none
    max_rank: int = 256
    warm_up: bool = True  # the lab compiles likely programs ahead, while it is idle
    compile_cache: Path | None = field(default_factory=lambda: default_cache() / "xla")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the Tinker API listens and who may call it."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free port
    api_key: str | None = field(default=None, repr=False)  # None: a random ``tml-`` key per server
    poll_seconds: float = 30.0  # how long a poll for results is held; the SDK gives up at 45
    session_seconds: float = 3600.0  # of silence that finish a session; a breakpoint silences the SDK
    jwt: bool = False  # clients exchange the key for tokens, so that whoami() works
    token_seconds: float = 3600.0  # how long such a token is good
    flags: Mapping[str, Any] = field(default_factory=dict)  # what clients are told, over txlab/server/wire/service.py


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where checkpoints live."""

    root: Path = field(default_factory=default_root)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one lab."""

    model: ModelSettings = field(default_factory=ModelSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
