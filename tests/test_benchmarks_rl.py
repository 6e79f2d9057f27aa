"""The benchmark of reinforcement learning runs, and both sides learn. Nothing here is a speed."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rl
from benchmarks.grpo import Grpo, advantages, reward
from benchmarks.txlab_grpo import TxlabGrpo, datum
from tests.models.tiny import make_tiny

EAGER = Grpo(prompts=4, samples=16, prompt_tokens=8, new_tokens=16, rank=8, learning_rate=3e-2)
ROUNDS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied tiny model."""
    return make_tiny(tmp_path_factory.mktemp("rl") / "tiny", tie_word_embeddings=False)


def learns(one_round: Callable[[], dict]) -> None:
    """Even tokens are about half of all by chance; since they are rewarded, nearly all at last."""
    rewards = [one_round()["reward"] for _ in range(ROUNDS)]
    assert abs(rewards[0] - 0.5) < 0.15
    assert rewards[-1] > 0.8


# ---------------------------------------------------------------------------------------- task


def test_advantages_are_relative_to_the_group():
    found = advantages(np.array([[0.0, 1.0, 0.0, 1.0], [0.25, 0.25, 0.25, 0.25]]))
    np.testing.assert_allclose(found, [[-1, 1, -1, 1], [0, 0, 0, 0]])


def test_even_tokens_are_rewarded():
    np.testing.assert_allclose(reward(np.array([[2, 4, 7, 8], [1, 3, 5, 7]])), [0.75, 0.0])


def test_prompts_are_the_same_for_everybody_and_new_in_each_round():
    work = Grpo(prompts=3, prompt_tokens=5)
    assert work.texts(320, 0).shape == (3, 5)
    np.testing.assert_array_equal(work.texts(320, 1), work.texts(320, 1))
    assert (work.texts(320, 0) != work.texts(320, 1)).any()


def test_a_datum_trains_on_what_was_drawn():
    from tinker import types

    sequence = types.SampledSequence("length", "id", np.array([7, 8]), np.array([-1.0, -2.0], np.float32))
    made = datum(np.array([4, 5, 6]), sequence, 0.5)
    inputs = {name: tensor.to_numpy().tolist() for name, tensor in made.loss_fn_inputs.items()}
    assert made.model_input.to_ints() == [4, 5, 6, 7]
    assert inputs["target_tokens"] == [5, 6, 7, 8]
    assert inputs["logprobs"] == [0.0, 0.0, -1.0, -2.0]
    assert inputs["advantages"] == [0.0, 0.0, 0.5, 0.5]


# --------------------------------------------------------------------------------------- sides


def test_the_lab_learns(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    with closing(TxlabGrpo(str(folder), "float32", work=EAGER)) as side:
        told = side.round()
        assert told["phases"].keys() == set(rl.PHASES)
        assert told["seconds"] == pytest.approx(sum(told["phases"].values()))
        assert 0 < told["busy"] < told["seconds"]
        learns(side.round)


@pytest.mark.usefixtures("torch", "peft")
def test_the_peer_learns(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from benchmarks import peft_grpo

    monkeypatch.setattr(
        "os.cpu_count", lambda: 1
    )  # threads that wait for one another take most of so small a model's time
    monkeypatch.setattr(peft_grpo, "BATCH_TOKENS", 300)  # several passes, the last of them smaller
    side = peft_grpo.PeftGrpo(str(folder), "float32", EAGER)
    learns(side.round)


# ------------------------------------------------------------------------------------- figures


def test_figures_of_all_rounds():
    work = Grpo(prompts=1, samples=2, prompt_tokens=3, new_tokens=2)

    def line(ours: float, busy: float, theirs: float) -> dict:
        phases = {"sample": ours / 2, "reward": 0.0, "train": ours / 4, "snapshot": ours / 4}
        return {
            "txlab": {"seconds": ours, "phases": phases, "busy": busy, "reward": 0.5},
            "peft": {"seconds": theirs, "phases": {"sample": theirs, "train": 1.0}, "reward": 0.5},
        }

    found = rl.summary([line(8.0, 6.0, 16.0), line(4.0, 2.0, 4.0), line(4.0, 4.0, 20.0)], work)
    assert found["ratio"] == 2.0  # of 2, 1 and 5
    assert found["outside"] == 0.25  # of 1/4, 1/2 and 0
    assert found["txlab"]["sampled_per_s"] == 4 / 2.0
    assert found["txlab"]["trained_per_s"] == 8 / 1.0
    table = rl.as_table(found).splitlines()
    assert [row.split()[0] for row in table] == ["sample", "txlab", "transformers", "ratio", "goal"]


def test_a_whole_run_without_the_peer(folder: Path, capsys: pytest.CaptureFixture[str]):
    rl.main(["--no-peer", "--repeat", "2", "--model", str(folder)])
    first, second, total, _, _, row, _ = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["round"] for line in (first, second)] == [0, 1]
    record = json.loads(total)
    assert (record["peft"], record["ratio"]) == (None, None)
    assert 0 < record["outside"] < 1
    assert row.split()[0] == "txlab"
