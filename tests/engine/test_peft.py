"""Training agrees with transformers and PEFT: of one step loss, logprobs, every LoRA gradient and every stepped weight;
of twenty, with adapters of several ranks and losses packed into the same batches, each loss and the trained weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.engine.golden import make_peft
from tests.engine.tools import answer, ask
from tests.models.tiny import make_tiny
from txlab.config import EngineSettings, ModelSettings
from txlab.engine.bus import EventBus
from txlab.engine.engine import Engine
from txlab.engine.requests import AdamParams, Datum, ExportAdapter, ForwardBackward, ImportAdapter, OptimStep
from txlab.lora.state import AdapterState, LoraConfig
from txlab.models.base import BaseModel, load_base
from txlab.models.config import projection_shapes

RELATIVE = 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> BaseModel:
    folder = make_tiny(tmp_path_factory.mktemp("peft") / "tiny", "llama", **make_peft.OVERRIDES)
    return load_base(ModelSettings(name=str(folder)))


@pytest.fixture(scope="module", params=["golden", "torch"])
def reference(request, base: BaseModel) -> dict[str, np.ndarray]:
    """PEFT's numbers: those kept in the repository, and those of this machine's torch."""
    if request.param == "golden":
        return dict(np.load(make_peft.GOLDEN))
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    return make_peft.peft_step(Path(base.name), factors(base))


@pytest.fixture
def engine(base: BaseModel) -> Iterator[Engine]:
    engine = Engine(base, EngineSettings(), EventBus())
    engine.start()
    yield engine
    engine.stop()


def factors(base: BaseModel) -> dict[str, np.ndarray]:
    return make_peft.draw_factors(projection_shapes(base.config), base.config.num_layers)


def assert_agrees(ours, theirs, what):
    """Within 1e-4 of the largest element: relative where it matters, forgiving where a sum cancels to nothing."""
    np.testing.assert_allclose(ours, theirs, rtol=RELATIVE, atol=RELATIVE * np.abs(theirs).max(), err_msg=what)


def test_one_training_step_agrees(base: BaseModel, engine: Engine, reference):
    state = AdapterState(LoraConfig(rank=make_peft.RANK), factors(base))
    answer(engine, ImportAdapter("m", 0, state, "m"))
    data = [Datum(t[:-1].astype(np.int32), t[1:].astype(np.int32), {"weights": w}) for t, w in make_peft.batch()]
    result = answer(engine, ForwardBackward("m", 1, tuple(data)))
    gradient = engine._bank["m"].gradient.stacked()  # the API never shows gradients
    assert result.metrics["loss:sum"] == pytest.approx(float(reference["loss"]), rel=RELATIVE)
    for i, logprobs in enumerate(result.logprobs):
        assert_agrees(logprobs, reference[f"logprobs.{i}"], f"logprobs of datum {i}")
    assert len(gradient) == 8
    for name, pair in gradient.items():
        assert_agrees(pair.a, reference[f"gradient.{name}.a"], f"{name}.a")
        assert_agrees(pair.b, reference[f"gradient.{name}.b"], f"{name}.b")
    adam = AdamParams(make_peft.LEARNING_RATE, 0.9, 0.95, 1e-12, weight_decay=0.01)
    answer(engine, OptimStep("m", 2, adam))
    stepped = answer(engine, ExportAdapter("m", 3, True))
    for name, array in stepped.weights.items():
        # Adam's first step is a sign: where a gradient is next to nothing, float noise decides it
        sure = np.abs(reference[f"gradient.{name}"]) > 1e-5 * np.abs(reference[f"gradient.{name}"]).max()
        assert sure.mean() > 0.5
        assert_agrees(array[sure], reference[f"stepped.{name}"][sure], f"{name} after the step")


@pytest.fixture(scope="module", params=["golden", "torch"])
def trained(request, base: BaseModel) -> dict[str, np.ndarray]:
    """What PEFT makes of the adapters: as kept in the repository, and on this machine."""
    if request.param == "golden":
        return dict(np.load(make_peft.GOLDEN_TRAINING))
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    return make_peft.peft_training(Path(base.name), projection_shapes(base.config), base.config.num_layers)


def data_of(loss: str) -> tuple[Datum, ...]:
    data = []
    for tokens, weights in make_peft.batch():
        policy = {"logprobs": np.full_like(weights, make_peft.OLD_LOGPROB), "advantages": weights - 1}
        inputs = {"weights": weights} if loss == "cross_entropy" else policy
        data.append(Datum(tokens[:-1].astype(np.int32), tokens[1:].astype(np.int32), inputs))
    return tuple(data)


def test_twenty_steps_of_adapters_of_several_ranks_and_losses_agree(base: BaseModel, engine: Engine, trained):
    adam = AdamParams(make_peft.STEPS_LEARNING_RATE, 0.9, 0.95, make_peft.STEPS_EPS, weight_decay=0.01)
    shapes, layers = projection_shapes(base.config), base.config.num_layers
    for rank in make_peft.LEARNINGS:
        state = AdapterState(LoraConfig(rank=rank), make_peft.draw_factors(shapes, layers, rank))
        answer(engine, ImportAdapter(f"r{rank}", 0, state, f"r{rank}"))
    losses: dict[int, list[float]] = {rank: [] for rank in make_peft.LEARNINGS}
    for step in range(make_peft.STEPS):
        passes, seq = {}, 2 * step + 1
        for rank, loss in make_peft.LEARNINGS.items():  # all are queued before the first is done
            passes[rank] = ask(engine, ForwardBackward(f"r{rank}", seq, data_of(loss), loss))
        for rank in make_peft.LEARNINGS:
            losses[rank].append(passes[rank].result(120).metrics["loss:sum"])
            answer(engine, OptimStep(f"r{rank}", seq + 1, adam))
    for rank, found in losses.items():
        expected = trained[f"losses.{rank}"]
        assert expected[-1] < expected[0] - 0.5, "it learns"
        assert_agrees(found, expected, f"losses of rank {rank}")
        stepped = answer(engine, ExportAdapter(f"r{rank}", 2 * make_peft.STEPS + 1, True))
        for name, array in stepped.weights.items():
            assert_agrees(array, trained[f"{rank}.{name}"], f"{name} of rank {rank} after {make_peft.STEPS} steps")
