"""Synthetic events for the board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from txlab.engine.bus import AdapterView, EventBus, LabView
from txlab.engine.events import (
    AdapterCreated,
    PassCompleted,
    SampleCompleted,
    SampleProgress,
    StateChanged,
    StepCompleted,
)
from txlab.lora.state import LoraConfig
from txlab.notebook.views.frame import Frame, make_frame


def decode(
    tokens: Sequence[int], prompt: Sequence[int] = (), *, special: bool = False, growing: bool = False
) -> list[str]:
    """A token is a character."""
    return list(map(chr, tokens))


def encode(text: str) -> np.ndarray:
    """The other way round."""
    return np.array([ord(char) for char in text], np.int32)


def train(bus: EventBus, name: str, steps: int, loss: float = 4.0) -> None:
    """An adapter that learns for ``steps`` steps and is idle then."""
    bus.publish(AdapterCreated(name, name, LoraConfig(16), 12_345_678))
    for step in range(1, steps + 1):
        bus.publish(PassCompleted(name, loss * 0.9**step * 10, 10.0, 100, 0.05, True))
        bus.publish(StepCompleted(name, step, 1e-4, 1.0, 12_345_678))
    bus.publish(StateChanged(name, "idle"))


def sample(bus: EventBus, prompt: str, text: str, model_id: str | None = None, stop: str = "stop") -> None:
    """One sampled sequence."""
    drawn = encode(text)
    bus.publish(SampleCompleted(model_id, encode(prompt), drawn, np.zeros(len(drawn), np.float32), stop, 0.5))


def stream(bus: EventBus, prompt: str, text: str, number: int = 0, model_id: str | None = None) -> None:
    """More of a sequence that is being sampled."""
    drawn = encode(text)
    logprobs = np.zeros(len(drawn), np.float32)
    bus.publish(SampleProgress((number, 0), model_id, encode(prompt), drawn, logprobs, ended=False))


def view(adapters: int = 1, points: int = 100, spike: float | None = None, **more: Any) -> LabView:
    """A lab with adapters whose loss falls over ``points`` steps, with one ``spike`` in the middle if asked for."""
    steps = np.arange(1.0, points + 1)
    loss = 4 * np.exp(-3 * steps / points)
    if spike is not None:
        loss[points // 2] = spike
    columns = [steps, steps * 100, steps * 2, loss]
    curves = {"loss": np.column_stack(columns), "reward": np.column_stack([*columns[:3], -loss])}
    made = tuple(
        AdapterView(f"5f0c9d3e:train:{i}", f"adapter-{i:02d}", LoraConfig(16), 12_345_678, curves=curves, step=points)
        for i in range(adapters)
    )
    return LabView(1, made, (), 3, 4.5, **more)


def frame(adapters: int = 1, points: int = 100, spike: float | None = None, **more: Any) -> Frame:
    """A frame of such a lab; ``more`` are fields of it."""
    return replace(make_frame(view(adapters, points, spike), decode, "base/model", "http://127.0.0.1:1"), **more)
