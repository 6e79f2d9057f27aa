"""Programs of the tinker-cookbook, unmodified, against this server."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.compat.conftest import MODEL, Cookbook, Run

pytest.importorskip("torch")
pytest.importorskip("pylatexenc")  # tinker-cookbook[math-rl]
pytest.importorskip("tinker_cookbook")

RECENT = tuple(map(int, version("tinker-cookbook").split(".")[:2])) >= (0, 6)  # its recipes begin with another loss
SERVED = "loss_fn=importance_sampling"
SMALL = ("groups_per_batch=2", "max_tokens=6", "eval_every=0", "max_steps=1")


def test_sl_loop_goes_on_from_its_last_checkpoint_as_if_never_stopped(cookbook: Cookbook) -> None:
    arguments = ("batch_size=16", "learning_rate=0.01", "lora_rank=8", "save_every=2")
    run = cookbook.run("sl_loop", "sl_loop", *arguments)
    losses = run.metrics("train_mean_nll")
    assert len(losses) == 4
    assert losses[3] < 0.7 * losses[0]
    assert [saved["name"] for saved in run.checkpoints()] == ["000002", "final"]

    run.forget_checkpoint("final")
    again = cookbook.run("sl_loop", "sl_loop", *arguments).metrics("train_mean_nll")
    assert again[4:] == pytest.approx(losses[2:], rel=1e-4)


@pytest.fixture(scope="module")
def taught(cookbook: Cookbook) -> Run:
    """The chat_sl recipe, with evaluations, periodic and rolling checkpoints."""
    return cookbook.run(
        "chat_sl.train",
        "chat_sl",
        "dataset=no_robots",
        "batch_size=16",
        "learning_rate=0.01",
        "lora_rank=8",
        "num_epochs=6",
        "eval_every=4",
        "save_every=4",
        "rolling_save_every=1",
    )


def test_chat_sl_learns_and_drops_its_rolling_checkpoints(taught: Run, cookbook: Cookbook) -> None:
    tested = taught.metrics("test/nll")
    assert tested[-1] < 0.3 * tested[0]
    kept = ["000004", "000008", "000012", "000016", "000020", "final"]
    assert {row["name"] for row in taught.checkpoints() if not row.get("rolling")} == {*kept}
    listed = cookbook.checkpoint_names(taught.checkpoints()[-1]["state_path"])
    assert listed == {f"{kind}/{name}" for kind in ("weights", "sampler_weights") for name in kept}


def test_math_rl_raises_the_reward(cookbook: Cookbook, taught: Run) -> None:
    run = cookbook.run(
        "math_rl.train",
        "math_rl",
        "env=arithmetic",
        f"load_checkpoint_path={taught.checkpoints()[-1]['state_path']}",
        "group_size=8",
        "groups_per_batch=8",
        "max_tokens=10",
        "learning_rate=0.002",
        "max_steps=6",
        "compute_post_kl=true",
        SERVED,
    )
    answered = run.metrics("env/all/format")  # how often the answer was short enough
    assert sum(answered[-2:]) / 2 > answered[0] + 0.1
    assert run.metrics("env/all/reward/total")[-1] > run.metrics("env/all/reward/total")[0]
    assert max(run.metrics("optim/kl_sample_train_v2")) < 1e-6  # sampler and trainer agree about probabilities
    assert min(run.metrics("kl_pre_post_v2")) > 0.0


@pytest.mark.skipif(not RECENT, reason="older recipes begin with importance_sampling")
def test_the_loss_that_recipes_begin_with_is_refused_with_what_to_write_instead(cookbook: Cookbook) -> None:
    shown = cookbook.refused("math_rl.train", "math_rl_default", "env=arithmetic", "group_size=2", *SMALL)
    assert "loss_fn 'stable_reinforce' is not served" in shown
    assert SERVED in shown


def test_rl_loop_samples_with_its_own_settings(cookbook: Cookbook) -> None:
    run = cookbook.run("rl_loop", "rl_loop", "batch_size=4", "group_size=2", "max_tokens=8", "max_steps=2")
    assert run.metrics("reward/total") == [0.0, 0.0]  # the tiny model writes no answer, so that nothing is trained on
    assert [saved["name"] for saved in run.checkpoints()] == ["final"]


def test_rubric_grades_and_trains(cookbook: Cookbook, taught: Run) -> None:
    rubric = {
        "rubric_str": "The answer is short.",
        "extraction_regex": "<score>(.*?)</score>",
        "grader_output_format_instruction": "Write the score as <score>0.5</score>.",
    }
    convo = [{"role": "user", "content": "What is 4 + 5?"}]
    data = cookbook.workspace / "rubric.jsonl"
    data.write_text(f"{json.dumps({'convo': convo, 'rubric_items': [rubric]})}\n" * 8)
    run = cookbook.run(
        "rubric.train",
        "rubric",
        f"load_checkpoint_path={taught.checkpoints()[-1]['state_path']}",
        "renderer_name=role_colon",
        f"grader_llm_name={MODEL}",
        "grader_renderer_name=role_colon",
        f"train_jsonl_path={data}",
        f"test_jsonl_path={data}",
        "train_group_size=2",
        *SMALL,
        SERVED,
    )
    assert run.metrics("env/all/total_episodes") == [4]
    assert max(run.metrics("optim/kl_sample_train_v2")) < 1e-6


def test_dpo_prefers_what_was_chosen(cookbook: Cookbook) -> None:
    run = cookbook.run("preference.dpo.train", "dpo", "dataset=hhh", "learning_rate=0.001", "batch_size=16")
    losses = run.metrics("dpo_loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # policy and reference are the same: -log(1/2)
    assert losses[-1] < 0.6
    assert run.metrics("accuracy")[-1] == 1.0
    assert run.metrics("margin")[-1] > 0.2


def test_on_policy_distillation_comes_nearer_to_its_teacher(cookbook: Cookbook, taught: Run) -> None:
    run = cookbook.run(
        "distillation.on_policy_distillation",
        "distillation",
        "dataset=tulu3",
        f"teacher_model={MODEL}",
        f"load_checkpoint_path={taught.checkpoints()[3]['state_path']}",
        f"teacher_checkpoint={taught.checkpoints()[-1]['sampler_path']}",
        "group_size=8",
        "groups_per_batch=8",
        "max_tokens=6",
        "learning_rate=0.003",
        "max_steps=8",
    )
    distances = run.metrics("teacher_kl")
    assert sum(distances[-3:]) / 3 < 0.7 * distances[0]


def test_guess_number_plays_many_turns(cookbook: Cookbook) -> None:
    run = cookbook.run(
        "multiplayer_rl.guess_number.train",
        "guess_number",
        "renderer_name=role_colon",
        "batch_size=1",
        "group_size=2",
        "max_tokens=8",
        "max_steps=1",
        "eval_every=0",
    )
    assert run.metrics("env/all/turns_per_episode") == [10.0]
    assert run.metrics("env/all/total_episodes") == [2]


DOWNLOAD = """
import sys
from tinker_cookbook import weights
weights.download(tinker_path=sys.argv[1], output_dir=sys.argv[2])
"""


def test_a_training_checkpoint_is_downloaded_as_a_peft_adapter(cookbook: Cookbook, taught: Run, tmp_path: Path) -> None:
    path = taught.checkpoints()[-1]["state_path"]
    cookbook.python("-c", DOWNLOAD, path, str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 8
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert any(np.abs(tensor).max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
