"""The ``tinker checkpoint`` commands, as a user's terminal runs them.

``push-hf`` needs an account of the Hugging Face hub: what it uploads is what ``download`` fetches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from tests.models.tiny import make_tiny
from tests.server.conftest import Running
from tests.server.test_downloads import assert_peft_agrees
from tests.server.test_real_engine import lab, train

LONG = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with lab(model, tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def trainer(running: Running, model: Path) -> tinker.TrainingClient:
    trainer = running.client().create_lora_training_client(base_model=str(model), rank=4, seed=1).result(LONG)
    train(trainer, 3)
    return trainer


@pytest.fixture
def command(running: Running, tmp_path: Path):
    """Run ``tinker checkpoint …``."""

    def run(*arguments: str, fails: bool = False) -> str:
        return running.tinker(tmp_path, "-f", "json", "checkpoint", *arguments, fails=fails)

    return run


@pytest.fixture
def shown(running: Running, trainer: tinker.TrainingClient):
    """A checkpoint of the trainer as the API lists it."""
    rest = tinker.RestClient(base_url=running.url, api_key=running.key)

    def find(path: str):
        listed = rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints
        return next((checkpoint for checkpoint in listed if checkpoint.tinker_path == path), None)

    return find


def test_list_and_info(command, trainer):
    paths = [trainer.save_state(name, user_metadata={"n": name}).result(timeout=LONG).path for name in ("a", "b")]
    of_run = json.loads(command("list", "--run-id", trainer.model_id))["checkpoints"]
    assert [checkpoint["tinker_path"] for checkpoint in of_run[:2]] == paths[::-1]
    assert json.loads(command("list", "--limit", "1"))["checkpoints"] == of_run[:1]
    info = json.loads(command("info", paths[0]))
    assert (info["checkpoint_id"], info["user_metadata"], info["lora_rank"]) == ("weights/a", {"n": "a"}, 4)
    assert "not found" in command("info", f"tinker://{trainer.model_id}/weights/nope", fails=True)


def test_publish_and_unpublish(command, trainer, shown):
    path = trainer.save_state("public").result(timeout=LONG).path
    command("publish", path)
    assert shown(path).public is True
    command("unpublish", path)
    assert shown(path).public is False


def test_set_ttl(command, trainer, shown):
    path = trainer.save_state("timed").result(timeout=LONG).path
    command("set-ttl", path, "--ttl", "7200")
    assert shown(path).expires_at is not None
    command("set-ttl", path, "--remove")
    assert shown(path).expires_at is None


def test_delete_by_path_and_by_filter(command, trainer, shown):
    path = trainer.save_state("one").result(timeout=LONG).path
    sampler = trainer.save_weights_for_sampler("two").result(timeout=LONG).path
    command("delete", "--yes", path)
    assert shown(path) is None
    assert shown(sampler) is not None
    command("delete", "--yes", "--run-id", trainer.model_id, "--type", "sampler_weights", "--after", "2024-01-01")
    assert shown(sampler) is None


@pytest.mark.parametrize("kind", ["training", "external"])
def test_what_is_downloaded_loads_in_peft(command, trainer, model, tmp_path, kind):
    save = trainer.save_state if kind == "training" else trainer.save_weights_external
    command("download", save(f"down-{kind}").result(timeout=LONG).path, "--output", "out")
    (folder,) = (tmp_path / "out").iterdir()
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert_peft_agrees(files, model, trainer, tmp_path / "adapter")
