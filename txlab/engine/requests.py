"""Typed requests to the engine and what comes back: plain dataclasses, no HTTP, no JAX.

Arrays are NumPy. A *datum* is one training sequence of N tokens; position ``i`` of ``tokens``
predicts ``targets[i]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from txlab.lora.state import AdapterState, LoraConfig


class RequestError(Exception):
    """A request failed. ``category`` says whose fault it is, in Tinker's terms."""

    def __init__(self, message: str, category: Literal["user", "server"] = "user"):
        super().__init__(message)
        self.category = category


class SnapshotGoneError(RequestError):
    """The snapshot to sample from was dropped: by its owner, or to make room for newer ones."""


def as_request_error(error: Exception) -> RequestError:
    """What the caller is told: ValueError is the user's, anything else the server's."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValueError):
        return RequestError(str(error))
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return RequestError("out of memory: send fewer or shorter sequences, or lower the rank", "server")
    return RequestError(f"{type(error).__name__}: {error}", "server")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask of this engine."""

    vocab_size: int
    max_context: int  # tokens, prompt and sampled ones together
    max_rank: int
    max_samples: int = 1024  # sequences of one sample request


@dataclass(frozen=True, slots=True)
class AdamParams:
    """AdamW: decoupled ``weight_decay``; ``grad_clip_norm`` is a global norm, 0 is off."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Datum:
    """One training sequence of length N, with one target or K targets per position.

    ``inputs`` are weights, advantages and the like: float32 of shape (N,), weights of the shape of ``targets``.
    A loss that was uploaded or registered may read others: float32 or int64, of shape (), (N,) or (N, K).
    """

    tokens: np.ndarray  # (N,) int32
    targets: np.ndarray  # (N,) or (N, K) int32
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is drawn. ``stop=None`` ends at the model's EOS tokens; an empty ``stop`` at none.

    Strings and token ids may be mixed in ``stop``.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1  # -1: off
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str | int, ...] | None = None


# ---------------------------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True)
class CreateAdapter:
    """A fresh adapter. Result: None."""

    model_id: str
    lora: LoraConfig
    name: str


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Forget an adapter and fail what is still queued for it. Its snapshots live on. Result: None."""

    model_id: str


@dataclass(frozen=True, slots=True)
class PauseAdapter:
    """Let an adapter's training requests wait until it is resumed; what is on the device ends. Result: None."""

    model_id: str


@dataclass(frozen=True, slots=True)
class ResumeAdapter:
    """Go on with an adapter that is paused or stopped; no effect on one that is not. Result: None."""

    model_id: str


@dataclass(frozen=True, slots=True)
class StopAdapter:
    """Fail whatever runs or waits for an adapter, its clients' samples too, and refuse what comes until it is resumed.

    Result: StoppedRun.
    """

    model_id: str


@dataclass(frozen=True, slots=True)
class NoteInterrupt:
    """A user interrupted a program: mark the next steps of what it has sent. Result: InterruptedRuns.

    ``sessions`` are those of the program, ``since`` (of ``time.monotonic``) is when what was interrupted began.
    """

    sessions: frozenset[str]
    since: float


@dataclass(frozen=True, slots=True)
class RenameAdapter:
    """Call an adapter something else. Result: None."""

    model_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CopyAdapter:
    """Copy an adapter as it is at this moment, whatever is queued, to host memory. Result: AdapterState."""

    model_id: str
    optimizer: bool = True


@dataclass(frozen=True, slots=True)
class RewindAdapter:
    """Bring back an adapter's weights and moments of a kept ``step``; gradients are dropped. Result: None."""

    model_id: str
    step: int


@dataclass(frozen=True, slots=True)
class ForkAdapter:
    """A new adapter ``model_id`` from the weights and moments of another. Result: None."""

    model_id: str
    name: str
    source_id: str
    step: int | None = None  # a kept one; None: as it is now


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBackward:
    """One pass over data; ``backward=False`` computes logprobs and loss only. Result: ForwardBackwardResult."""

    model_id: str
    seq_id: int
    data: tuple[Datum, ...]
    loss: str = "cross_entropy"
    loss_config: Mapping[str, float] = field(default_factory=dict)
    backward: bool = True


@dataclass(frozen=True, slots=True)
class OptimStep:
    """Apply and clear the accumulated gradient. Result: OptimStepResult."""

    model_id: str
    seq_id: int
    adam: AdamParams


@dataclass(frozen=True, slots=True)
class ExportAdapter:
    """Copy an adapter to host memory, for a checkpoint. Result: AdapterState."""

    model_id: str
    seq_id: int
    optimizer: bool


@dataclass(frozen=True, slots=True, eq=False)
class ImportAdapter:
    """Replace an adapter's weights (created where unknown) by a checkpoint's. Result: None."""

    model_id: str
    seq_id: int
    state: AdapterState
    name: str


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Freeze the present weights under ``snapshot_id`` for sampling. Result: None."""

    model_id: str
    seq_id: int
    snapshot_id: str


@dataclass(frozen=True, slots=True)
class FreezeAdapter:
    """Freeze the weights as they are now under ``snapshot_id``, whatever training is queued. Result: None."""

    model_id: str
    snapshot_id: str


@dataclass(frozen=True, slots=True, eq=False)
class LoadSnapshot:
    """Bring a checkpoint's weights in as a snapshot. Result: None."""

    snapshot_id: str
    state: AdapterState
    name: str


@dataclass(frozen=True, slots=True)
class DropSnapshot:
    """Free a snapshot. Result: None."""

    snapshot_id: str


@dataclass(frozen=True, slots=True)
class SkipSeq:
    """Use up a ``seq_id`` whose request was refused at the door, so that later ones may run. Result: None.

    Of a refused pass or step the engine must know: its other half must not take effect.
    """

    model_id: str
    seq_id: int
    refused: Half | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Draw ``num_samples`` continuations of one prompt, and score the prompt. Result: SampleResult.

    Row i of ``target_prompt_logprobs`` names tokens whose logprob is wanted in the place of prompt[i + 1]; -1: none.
    """

    snapshot_id: str | None  # None: the base model
    prompt: np.ndarray  # (P,) int32
    num_samples: int
    params: SamplingParams
    prompt_logprobs: bool = False
    prompt_logprobs_last_n: int | None = None  # score only so many tokens at the prompt's end
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: np.ndarray | None = None  # (P - 1, K) int32
    prompt_alt_tokens_k: int = 0
    on_tokens: TokensDrawn | None = None  # told of tokens as they are drawn
    announced: bool = True  # events tell of its sequences; else whoever asks shows them somewhere of their own
    of_run: bool = False  # asked by a client that trains, so refused while its run is stopped


@dataclass(frozen=True, slots=True, eq=False)
class CancelSample:
    """Stop a Sample request, which fails with RequestError; no effect on one that has ended. Result: None."""

    sample: Sample


Half = Literal["forward_backward", "optim_step"]  # of a pass and its step, which clients send together

# Index among the samples, and its newest tokens (n,) int32 with their logprobs (n,) float32. On the engine thread: it
# must not block. What it was told is never taken back.
TokensDrawn = Callable[[int, np.ndarray, np.ndarray], None]

Sequenced = ForwardBackward | OptimStep | ExportAdapter | ImportAdapter | TakeSnapshot | SkipSeq
Control = PauseAdapter | ResumeAdapter | StopAdapter | RenameAdapter | CopyAdapter | RewindAdapter | ForkAdapter
Unsequenced = (
    CreateAdapter
    | UnloadAdapter
    | FreezeAdapter
    | LoadSnapshot
    | DropSnapshot
    | Sample
    | CancelSample
    | NoteInterrupt
    | Control
)
Request = Sequenced | Unsequenced


# ----------------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBackwardResult:
    """Target logprobs of each datum, float32 in the shape of its targets, and metrics named ``<name>:<reduction>``."""

    logprobs: tuple[np.ndarray, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class OptimStepResult:
    """Metrics of one optimizer step: ``grad_norm`` (before clipping), ``learning_rate``, ``step``."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class SampledSequence:
    """One continuation; the token that ended it is included.

    Logprobs, the likeliest tokens' too, are of the softmax at the temperature that drew it, at 1 where that is 0.
    """

    tokens: np.ndarray  # (n,) int32
    logprobs: np.ndarray  # (n,) float32
    stop_reason: Literal["stop", "length"]
    topk_logprobs: TopLogprobs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TopLogprobs:
    """The k likeliest tokens per position, best first.

    Of a prompt all P positions, where row 0 holds the sentinels (0, -99999.0); of a sampled sequence its n tokens.
    """

    token_ids: np.ndarray  # (P, k) or (n, k) int32
    logprobs: np.ndarray  # the same shape, float32


@dataclass(frozen=True, slots=True, eq=False)
class AltTokens:
    """k draws, with replacement and at the request's temperature, in the place of each of prompt[1:].

    Logprobs are the model's, at temperature 1, as all of a prompt are. top_k and top_p do not cut these draws.
    """

    tokens: np.ndarray  # (P - 1, k) int32
    logprobs: np.ndarray  # (P - 1, k) float32


@dataclass(frozen=True, slots=True, eq=False)
class SampleResult:
    """What a Sample request drew, with the prompt's own logprobs where asked for."""

    sequences: tuple[SampledSequence, ...]
    prompt_logprobs: np.ndarray | None = None  # (P,) float32, NaN at 0
    topk_prompt_logprobs: TopLogprobs | None = None
    target_prompt_logprobs: np.ndarray | None = None  # (P - 1, K) float32, 0 where the token was -1
    prompt_alt_tokens: AltTokens | None = None
    prompt_cache_hit_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StoppedRun:
    """Result of stopping a run: how much of it was ended."""

    requests: int  # of training, that ran or waited
    samples: int  # requests for samples, too
    passes: int  # whose accumulated gradients were dropped
    address: str  # what the adapter is called, or its id where others are called the same


@dataclass(frozen=True, slots=True)
class UnsteppedPasses:
    """Passes of an adapter that go on, or are accumulated, though whoever sent them was interrupted."""

    model_id: str
    name: str
    under_way: int  # they run or wait
    accumulated: int
    step_waits: bool  # their optimizer step was sent, too


@dataclass(frozen=True, slots=True)
class InterruptedRuns:
    """The adapters that an interrupted program has passes of."""

    runs: tuple[UnsteppedPasses, ...]


Result = ForwardBackwardResult | OptimStepResult | SampleResult | AdapterState | StoppedRun | InterruptedRuns | None
