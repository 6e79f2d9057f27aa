"""An engine without a model: keeps the order of requests, counts steps, and lets a test look at what arrived.

An adapter's only weight is ``w``; an optimizer step adds the learning rate times the number of accumulated datums.
Logprobs are ``-w`` everywhere, and every sampled token is the rounded ``w``, so that what was trained is what is seen.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from txlab.engine.losses import Losses
from txlab.engine.requests import (
    AltTokens,
    CancelSample,
    CreateAdapter,
    DropSnapshot,
    ExportAdapter,
    ForwardBackward,
    ForwardBackwardResult,
    ImportAdapter,
    Limits,
    LoadSnapshot,
    OptimStep,
    OptimStepResult,
    RequestError,
    Sample,
    SampledSequence,
    SampleResult,
    Sequenced,
    SkipSeq,
    TakeSnapshot,
    TopLogprobs,
    UnloadAdapter,
)
from txlab.lora.state import AdapterState, LoraConfig


@dataclass
class FakeAdapter:
    lora: LoraConfig
    w: float = 0.0
    step: int = 0
    moment: float = 0.0
    pending: int = 0  # datums since the last step
    next_seq: int = 1
    waiting: dict[int, tuple[Any, Any]] = field(default_factory=dict)


ENDLESS = 99  # a prompt that begins with this token is sampled until it is cancelled


class FakeEngine:
    """Same face as the engine. While ``gate`` is cleared, nothing completes."""

    def __init__(self, tokenizer_dir: Path):
        config = SimpleNamespace(architecture="FakeForCausalLM")
        self.base = SimpleNamespace(name="fake/model", config=config, tokenizer_dir=tokenizer_dir)
        self.limits = Limits(vocab_size=100, max_context=4096, max_rank=64)
        self.losses = Losses()
        self.adapters: dict[str, FakeAdapter] = {}
        self.snapshots: dict[str, float] = {}
        self.log: list[Any] = []  # requests in order of execution
        self.endless: dict[Sample, Any] = {}  # samples that run, and whom to tell of their end
        self.broken: tuple[type, ...] = ()  # kinds of request that fail
        self.gate = threading.Event()
        self.gate.set()
        self._inbox: deque[tuple[Any, Any]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request, done):
        with self._wake:
            self._inbox.append((request, done))
            self._wake.notify()

    def stop(self):
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.gate.set()
        self._thread.join()

    def _run(self):
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._inbox or self._stopping)
                if self._stopping:
                    return
                request, done = self._inbox.popleft()
            self.gate.wait()
            if isinstance(request, Sequenced):
                self._enqueue(request, done)
            else:
                self._complete(request, done)

    def _enqueue(self, request, done):
        if isinstance(request, ImportAdapter) and request.seq_id == 0:
            self.adapters[request.model_id] = FakeAdapter(request.state.lora, next_seq=0)
        adapter = self.adapters.get(request.model_id)
        if adapter is None:
            done(RequestError(f"no adapter {request.model_id}"))
            return
        adapter.waiting[request.seq_id] = (request, done)
        while adapter.next_seq in adapter.waiting:
            ready = adapter.waiting.pop(adapter.next_seq)
            adapter.next_seq += 1
            self._complete(*ready)

    def _complete(self, request, done):
        self.log.append(request)
        if isinstance(request, Sample) and request.prompt[0] == ENDLESS:
            self.endless[request] = done
            return
        try:
            result = self._execute(request)
        except Exception as error:
            result = error
        done(result)

    def _execute(self, request):
        if isinstance(request, self.broken):
            raise RequestError("out of memory", "server")
        match request:
            case CreateAdapter():
                self.adapters[request.model_id] = FakeAdapter(request.lora)
            case UnloadAdapter():
                adapter = self.adapters.pop(request.model_id)
                for _, done in adapter.waiting.values():
                    done(RequestError("model was unloaded"))
            case CancelSample():
                if request.sample in self.endless:
                    self.endless.pop(request.sample)(RequestError("cancelled"))
            case DropSnapshot():
                del self.snapshots[request.snapshot_id]
            case LoadSnapshot():
                self.snapshots[request.snapshot_id] = float(request.state.weights["w"][0])
            case TakeSnapshot():
                self.snapshots[request.snapshot_id] = self.adapters[request.model_id].w
            case ForwardBackward():
                return self._pass(request)
            case OptimStep():
                return self._step(request)
            case ExportAdapter():
                return self._export(request)
            case ImportAdapter():
                adapter, state = self.adapters[request.model_id], request.state
                adapter.lora, adapter.w, adapter.step = state.lora, float(state.weights["w"][0]), state.step
                adapter.moment = float(state.first_moment["w"][0]) if state.first_moment else 0.0
            case Sample():
                return self._sample(request)
            case SkipSeq():
                pass
        return None

    def _pass(self, request):
        adapter = self.adapters[request.model_id]
        if request.backward:
            adapter.pending += len(request.data)
        logprobs = tuple(np.full(d.targets.shape, -adapter.w, np.float32) for d in request.data)
        tokens = sum(len(d.tokens) for d in request.data)
        return ForwardBackwardResult(logprobs, {"loss:sum": adapter.w * tokens, "tokens:sum": float(tokens)})

    def _step(self, request):
        adapter = self.adapters[request.model_id]
        adapter.w += request.adam.learning_rate * adapter.pending
        adapter.step += 1
        adapter.moment += adapter.pending
        adapter.pending = 0
        return OptimStepResult({"grad_norm": adapter.moment, "step": float(adapter.step)})

    def _export(self, request):
        adapter = self.adapters[request.model_id]
        moments = {"w": np.array([adapter.moment], np.float32)} if request.optimizer and adapter.step else None
        weights = {"w": np.array([adapter.w], np.float32)}
        return AdapterState(adapter.lora, weights, adapter.step, moments, moments)

    def _sample(self, request):
        if request.snapshot_id is not None and request.snapshot_id not in self.snapshots:
            raise RequestError(f"no snapshot {request.snapshot_id}")
        w = 0.0 if request.snapshot_id is None else self.snapshots[request.snapshot_id]
        n, length = request.params.max_tokens, len(request.prompt)
        tokens, logprobs = np.full(n, round(w), np.int32), np.full(n, -w, np.float32)
        if request.on_tokens is not None:
            for index in range(request.num_samples):
                for i in range(n):
                    request.on_tokens(index, tokens[i : i + 1], logprobs[i : i + 1])
        sequence = SampledSequence(tokens, logprobs, "length", _top(n, request.topk_sample_logprobs, w))
        first = length - (request.prompt_logprobs_last_n or length - 1)
        scored = np.where(np.arange(length) < first, np.nan, -w).astype(np.float32)
        top = _top(length, request.topk_prompt_logprobs, w)
        if top is not None:
            top.token_ids[:first], top.logprobs[:first] = 0, -99999.0
        targets, k = request.target_prompt_logprobs, request.prompt_alt_tokens_k
        alts = AltTokens(np.full((length - 1, k), round(w), np.int32), np.full((length - 1, k), -w, np.float32))
        return SampleResult(
            (sequence,) * request.num_samples,
            scored if request.prompt_logprobs else None,
            top,
            # Every target's logprob is its negative, so that a test sees which one came back where.
            None if targets is None else np.where(targets < 0, 0, -targets).astype(np.float32),
            alts if k else None,
        )


def _top(length: int, k: int, w: float) -> TopLogprobs | None:
    return TopLogprobs(np.ones((length, k), np.int32), np.full((length, k), -w, np.float32)) if k else None
