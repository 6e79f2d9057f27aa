"""Typed events: all that the engine tells of what it does. Plain data, no formatting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from txlab.lora.state import LoraConfig

State = Literal["queued", "training", "sampling", "idle", "paused", "stopped", "failed", "unloaded"]


@dataclass(frozen=True, slots=True)
class AdapterCreated:
    """An adapter exists; ``memory_bytes`` is what it holds on the device."""

    model_id: str
    name: str
    lora: LoraConfig
    memory_bytes: int
    step: int = 0  # optimizer steps that its weights have behind them


@dataclass(frozen=True, slots=True)
class AdapterRenamed:
    """An adapter is called something else from now on."""

    model_id: str
    name: str


@dataclass(frozen=True, slots=True)
class AdapterRewound:
    """An adapter's weights and moments are those of an earlier ``step`` again."""

    model_id: str
    step: int


@dataclass(frozen=True, slots=True)
class GradientDropped:
    """The gradient accumulated since the last step was dropped: its run was stopped, or the step refused."""

    model_id: str


@dataclass(frozen=True, slots=True)
class StepsKept:
    """The steps that an adapter can be rewound to or forked from, and what they hold in host memory."""

    model_id: str
    steps: tuple[int, ...]
    host_bytes: int


@dataclass(frozen=True, slots=True)
class PassCompleted:
    """A forward or forward_backward ended. ``loss`` is its sum, ``weight`` what it is a sum over."""

    model_id: str
    loss: float
    weight: float  # sum of |weights| of cross-entropy, else the number of tokens
    tokens: int  # without padding
    seconds: float
    backward: bool
    metrics: Mapping[str, float] = field(default_factory=dict)  # what else the loss tells, by name


@dataclass(frozen=True, slots=True)
class StepCompleted:
    """An optimizer step ended; ``grad_norm`` is the norm before clipping."""

    model_id: str
    step: int
    learning_rate: float
    grad_norm: float
    memory_bytes: int
    marks: tuple[str, ...] = ()  # what is remarkable about it, in words


@dataclass(frozen=True, slots=True)
class MetricsLogged:
    """A user's own figures for an adapter: reward, KL, accuracy. ``step`` None: the optimizer step that it is at."""

    model_id: str
    metrics: Mapping[str, float]
    step: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SampleProgress:
    """A sequence has more tokens, or ended, finished or not. ``key``: the request's number, the sequence's index."""

    key: tuple[int, int]
    model_id: str | None  # as in SampleCompleted
    prompt: np.ndarray  # (P,) int32
    tokens: np.ndarray  # (n,) int32, the new ones
    logprobs: np.ndarray  # (n,) float32
    ended: bool


@dataclass(frozen=True, slots=True, eq=False)
class SampleCompleted:
    """One sampled sequence. ``model_id`` is the adapter that the snapshot was taken of, None for the base."""

    model_id: str | None
    prompt: np.ndarray  # (P,) int32
    tokens: np.ndarray  # (n,) int32
    logprobs: np.ndarray  # (n,) float32
    stop_reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StateChanged:
    """An adapter is doing something else now."""

    model_id: str
    state: State
    message: str = ""


@dataclass(frozen=True, slots=True)
class BatchCompleted:
    """One micro-batch of training went through the device: its tokens, and the positions that they took."""

    tokens: int
    positions: int


@dataclass(frozen=True, slots=True)
class ProgramCompiled:
    """XLA compiled (or fetched from the cache) one program."""

    program: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is, and what its memory holds, at one moment. Bytes are of the device, if not said else."""

    queued: int = 0  # training requests that wait
    rows: int = 0  # sequences that decode together now
    max_rows: int = 0
    waiting_rows: int = 0  # sequences that wait for one
    cache_bytes: int = 0  # of the KV cache as it is now
    max_cache_bytes: int = 0
    device_bytes: int = 0  # base weights, adapters, snapshots, KV cache
    host_bytes: int = 0  # kept steps, in host memory


Event = (
    AdapterCreated
    | AdapterRenamed
    | AdapterRewound
    | GradientDropped
    | StepsKept
    | PassCompleted
    | StepCompleted
    | MetricsLogged
    | SampleProgress
    | SampleCompleted
    | StateChanged
    | BatchCompleted
    | ProgramCompiled
    | EngineLoad
)
