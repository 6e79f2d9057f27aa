"""An engine that trains and samples at once, and how ``benchmarks/mixed.py`` takes its times."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from benchmarks.measure import numpy_matmul_gflops
from benchmarks.workloads import even
from txlab.config import EngineSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.events import BatchCompleted, Event
from txlab.engine.requests import (
    AdamParams,
    CreateAdapter,
    Datum,
    ForwardBackward,
    OptimStep,
    Result,
    Sample,
    SamplingParams,
    TakeSnapshot,
)
from txlab.lora.state import LoraConfig
from txlab.models.base import BaseModel

WORK = even("8x128", 8, 128)  # of one round of training
PROMPT = 32  # tokens
SAMPLED = SamplingParams(max_tokens=16, stop=())
LIGHT_SECONDS = 1.0  # between two requests of light sampling
MOST_UNANSWERED = 256  # of those


class BatchCounter(EventBus):
    """A bus that counts micro-batches too."""

    batches = 0

    def publish(self, event: Event) -> None:
        self.batches += isinstance(event, BatchCompleted)
        super().publish(event)


class Subject:
    """An engine with one adapter that trains, and a snapshot of it to sample from."""

    def __init__(self, base: BaseModel, share: float):
        self.share = share
        self._bus = BatchCounter()
        self._engine = Engine(base, EngineSettings(sample_share=share), self._bus)
        self._engine.start()
        self._vocab_size = base.config.vocab_size
        (texts,) = WORK.texts(self._vocab_size)
        self._data = tuple(Datum(t[:-1].astype(np.int32), t[1:].astype(np.int32)) for t in texts)
        self._prompts = np.random.default_rng(0)
        self._seq_ids = count(1)
        self._engine.ask(CreateAdapter("trained", LoraConfig(WORK.ranks[0], seed=0), "trained")).result()
        self._engine.ask(TakeSnapshot("trained", next(self._seq_ids), "sampled")).result()

    def train(self) -> tuple[Future[Result], Future[Result]]:
        """One round: forward_backward and optim_step."""
        passed = self._forward_backward()
        return passed, self._engine.ask(OptimStep("trained", next(self._seq_ids), AdamParams(learning_rate=1e-4)))

    def micro_batch_seconds(self) -> float:
        """Seconds of a lone forward_backward, over the times that the device was given micro-batches for it."""
        before = self._bus.batches
        seconds = timed(self._forward_backward)
        streams, _ = self._engine.micro_batches
        return seconds / math.ceil((self._bus.batches - before) / streams)

    def sample(self) -> Future[Result]:
        """A short sample for a prompt of its own."""
        prompt = self._prompts.integers(self._vocab_size, size=PROMPT, dtype=np.int32)
        return self._engine.ask(Sample("sampled", prompt, 1, SAMPLED))

    @property
    def programs(self) -> int:
        """How many were compiled, or fetched from the cache, since this engine started; those of all engines."""
        return self._bus.view().compiles

    def stop(self) -> None:
        """Stop the engine."""
        self._engine.stop()

    def _forward_backward(self) -> Future[Result]:
        return self._engine.ask(ForwardBackward("trained", next(self._seq_ids), self._data))


# ------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True)
class Part:
    """One repetition for one share; all in seconds."""

    sample: list[float]  # alone
    micro_batch: float
    round: float  # of training, alone
    waited: list[float]  # samples asked one after the other, beside training
    light_round: float  # of training, under light sampling
    light: list[float]  # samples of that
    programs: int  # compiled meanwhile: none, or figures are too large
    gflops: float  # of NumPy's matmul


def measure(subject: Subject, samples: int, rounds: int) -> Part:
    """Take each figure once."""
    programs = subject.programs
    gflops = numpy_matmul_gflops()
    sample = [timed(subject.sample) for _ in range(samples)]
    micro_batch = subject.micro_batch_seconds()
    with closing(training(subject)) as ends:
        lone = seconds_per_round(ends, rounds)
    pauses = np.random.default_rng(0).uniform(0, lone, samples)
    waited = sample_beside_training(subject, pauses)
    light_round, light = train_under_light_sampling(subject, rounds)
    return Part(sample, micro_batch, lone, waited, light_round, light, subject.programs - programs, gflops)


def training(subject: Subject) -> Iterator[float]:
    """A client that trains without end, a round ahead so that the engine never waits: when each round ended."""
    ahead = deque(subject.train())
    try:
        while True:
            ahead.extend(subject.train())
            ahead.popleft().result(), ahead.popleft().result()
            yield time.perf_counter()
    finally:
        for future in ahead:
            future.result()


def seconds_per_round(ends: Iterator[float], rounds: int) -> float:
    """Mean over the next rounds, counted from an end to an end."""
    first, *_, last = islice(ends, rounds + 1)
    return (last - first) / rounds


def sample_beside_training(subject: Subject, pauses: Sequence[float]) -> list[float]:
    """Seconds of samples asked one after the other, each after a pause, while a client trains."""

    def ask() -> list[float]:
        seconds = []
        for pause in pauses:
            time.sleep(pause)
            seconds.append(timed(subject.sample))
        return seconds

    with ThreadPoolExecutor(1) as pool, closing(training(subject)) as ends:
        next(ends)
        asking = pool.submit(ask)
        for _ in ends:
            if asking.done():
                break
        return asking.result()


def train_under_light_sampling(subject: Subject, rounds: int) -> tuple[float, list[float]]:
    """Seconds of a round while somebody asks for a sample a second, and the seconds of those samples."""
    asked: list[Future[float]] = []
    with ThreadPoolExecutor(MOST_UNANSWERED) as pool, closing(training(subject)) as ends:
        next(ends)
        with every(LIGHT_SECONDS, lambda: asked.append(pool.submit(timed, subject.sample))):
            per_round = seconds_per_round(ends, rounds)
        return per_round, [seconds.result() for seconds in asked]


@contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Do something at once, then again after so many seconds each time, on a thread of its own."""
    ended = threading.Event()

    def act() -> None:
        action()
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def timed(submit: Callable[[], Future[Result]]) -> float:
    """Seconds from a request to its result."""
    began = time.perf_counter()
    submit().result()
    return time.perf_counter() - began


def warm_up(subject: Subject) -> None:
    """Compile what will be needed: several samples at once, as they pile up, then all parts until nothing is new."""
    with closing(training(subject)) as ends:
        next(ends)
        for together in (1, 2, 4, 8, 16):
            for future in [subject.sample() for _ in range(together)]:
                future.result()
    for _ in range(3):
        if not measure(subject, samples=2, rounds=1).programs:
            return
