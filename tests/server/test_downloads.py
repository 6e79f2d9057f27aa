"""Exports and archives, fetched by plain GETs, hold what PEFT loads."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
import tinker
from safetensors.numpy import load
from tinker import types

from tests.models.tiny import make_tiny
from tests.server.conftest import Running
from tests.server.test_real_engine import TOKENS, lab, logprobs, train
from txlab.lora.peft import CONFIG_FILE, WEIGHTS_FILE

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
    """An adapter that has learned something, with a checkpoint of each kind."""
    trainer = running.client().create_lora_training_client(base_model=str(model), rank=4, seed=1).result(LONG)
    train(trainer, 3)
    trainer.save_state("ck").result(timeout=LONG)
    trainer.save_weights_for_sampler("ck").result(timeout=LONG)
    trainer.save_weights_external("ck", ttl_seconds=3600).result(timeout=LONG)
    return trainer


@pytest.fixture(scope="module")
def rest(running: Running) -> tinker.RestClient:
    return tinker.RestClient(base_url=running.url, api_key=running.key)


def path_of(trainer: tinker.TrainingClient, kind: str) -> str:
    return f"tinker://{trainer.model_id}/{kind}/ck"


def fetch(url: str) -> bytes:
    """A plain GET, without a key."""
    response = httpx.get(url, timeout=LONG)
    assert response.status_code == 200, response.text
    return response.content


def assert_peft_agrees(files: dict[str, bytes], model: Path, trainer: tinker.TrainingClient, folder: Path) -> None:
    """PEFT gives the tokens the logprobs that the lab gives."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits = peft.PeftModel.from_pretrained(base, folder)(torch.tensor([TOKENS[:-1]])).logits[0]
    theirs = torch.log_softmax(logits, -1)[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])].numpy()
    np.testing.assert_allclose(theirs, logprobs(trainer), atol=1e-4)


@pytest.mark.parity
def test_an_export_is_fetched_without_a_key_and_loads_in_peft(trainer, rest, model, tmp_path):
    answer = rest.get_external_weights_urls(path_of(trainer, "external_weights")).result(timeout=LONG)
    assert answer.expires.timestamp() - time.time() > 600, "the CLI would sign again and again"
    files = {name: fetch(url) for name, url in answer.urls.items()}
    assert sorted(files) == [CONFIG_FILE, WEIGHTS_FILE]
    config = json.loads(files[CONFIG_FILE])
    assert (config["base_model_name_or_path"], config["r"]) == (str(model), 4)
    assert_peft_agrees(files, model, trainer, tmp_path / "adapter")


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["weights", "sampler_weights", "external_weights"])
def test_an_archive_is_redirected_to_and_loads_in_peft(running, trainer, model, tmp_path, kind):
    answer = running.get(f"training_runs/{trainer.model_id}/checkpoints/{kind}/ck/archive")
    assert answer.status_code == 302
    assert parsedate_to_datetime(answer.headers["expires"]).timestamp() > time.time() + 600
    with tarfile.open(fileobj=io.BytesIO(fetch(answer.headers["location"]))) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar.getmembers() if member.isfile()}
    assert sorted(files) == [CONFIG_FILE, WEIGHTS_FILE]
    assert_peft_agrees(files, model, trainer, tmp_path / "adapter")


def test_links_name_the_host_that_the_client_asked(running, trainer):
    route = (
        f"{running.url}/api/v1/training_runs/{trainer.model_id}/checkpoints/external_weights/ck/external_weights_urls"
    )
    answer = httpx.get(route, headers={"X-API-Key": running.key, "Host": "lab.example:8000"}, timeout=LONG)
    assert all(url.startswith("http://lab.example:8000/api/v1/") for url in answer.json()["urls"].values())


def test_a_link_is_good_for_its_file_only(trainer, rest):
    urls = rest.get_external_weights_urls(path_of(trainer, "external_weights")).result(timeout=LONG).urls
    url = httpx.URL(urls[CONFIG_FILE])
    for forged in (
        url.copy_with(query=None),
        url.copy_merge_params({"signature": "0" * 64}),
        url.copy_merge_params({"expires": str(int(time.time()) + 10**6)}),
        str(url).replace(CONFIG_FILE, WEIGHTS_FILE),
        str(url).replace("external_weights", "weights"),
    ):
        assert httpx.get(forged, timeout=LONG).status_code == 401
    assert httpx.delete(url, timeout=LONG).status_code == 401


def test_files_that_are_none_are_not_found(running, trainer):
    for file in ("nope", "checkpoint.json", "..%2F..%2Fck%2Fcheckpoint.json"):
        answer = running.get(f"training_runs/{trainer.model_id}/checkpoints/external_weights/ck/files/{file}")
        assert answer.status_code == 404


def test_a_link_dies_with_its_checkpoint(trainer, rest):
    path = trainer.save_weights_external("short").result(timeout=LONG).path
    urls = rest.get_external_weights_urls(path).result(timeout=LONG).urls
    rest.delete_checkpoint_from_tinker_path(path).result(timeout=LONG)
    answer = httpx.get(urls[CONFIG_FILE], timeout=LONG)
    assert (answer.status_code, "does not exist" in answer.json()["detail"]) == (404, True)


def test_an_export_is_listed_once_and_never_replaced(trainer, rest):
    (shown,) = [
        checkpoint
        for checkpoint in rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints
        if checkpoint.checkpoint_type == "external"
    ]
    assert shown.checkpoint_id == "external_weights/ck"
    assert shown.expires_at is not None
    with pytest.raises(tinker.RequestFailedError, match="exists: choose another name, or delete it first"):
        trainer.save_weights_external("ck").result(timeout=LONG)
    with pytest.raises(tinker.RequestFailedError, match="is no checkpoint name"):
        trainer.save_weights_external("a b").result(timeout=LONG)
    assert logprobs(trainer).shape == (len(TOKENS) - 1,), "a refused export did not use up its seq_id"


def test_a_copied_export_has_links_too(trainer, rest):
    copied = rest.copy_weights(path_of(trainer, "external_weights"), "archive").result(timeout=LONG)
    urls = rest.get_external_weights_urls(copied).result(timeout=LONG).urls
    assert len(load(fetch(urls[WEIGHTS_FILE]))) == 2 * (2 * 7 + 1)


def test_an_encrypted_export_opens_with_its_key_alone(trainer, rest):
    pyrage = pytest.importorskip("pyrage")
    identity = pyrage.x25519.Identity.generate()
    path = trainer.save_weights_external("secret", age_encryption_recipients=[str(identity.to_public())])
    urls = rest.get_external_weights_urls(path.result(timeout=LONG).path).result(timeout=LONG).urls
    assert sorted(urls) == [f"{CONFIG_FILE}.age", f"{WEIGHTS_FILE}.age"]
    data = fetch(urls[f"{CONFIG_FILE}.age"])
    assert json.loads(pyrage.decrypt(data, [identity]))["r"] == 4
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(data, [pyrage.x25519.Identity.generate()])


def test_recipients_that_are_none_are_refused(trainer):
    pytest.importorskip("pyrage")
    for recipients, message in (
        (["age1nope"], r"age_encryption_recipients\[0\] is no public key"),
        (["ssh-nope"], r"age_encryption_recipients\[0\] is no public key"),
        (["age1nope"] * 11, "has 11 keys: expected 10 at most"),
    ):
        with pytest.raises(tinker.RequestFailedError, match=message):
            trainer.save_weights_external("secret2", age_encryption_recipients=recipients).result(timeout=LONG)


@pytest.mark.parity
def test_the_cookbook_downloads_a_training_checkpoint(running, trainer, rest, model, tmp_path, monkeypatch):
    weights = pytest.importorskip("tinker_cookbook.weights")
    monkeypatch.setenv("TINKER_API_KEY", running.key)
    weights.download(tinker_path=path_of(trainer, "weights"), output_dir=str(tmp_path / "out"), base_url=running.url)
    files = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert sorted(files) == [CONFIG_FILE, WEIGHTS_FILE]
    assert_peft_agrees(files, model, trainer, tmp_path / "adapter")
    left = [checkpoint.tinker_path for checkpoint in rest.list_user_checkpoints().result(timeout=LONG).checkpoints]
    assert not any(path.endswith("/download") for path in left), "the temporary export was not deleted"


def test_the_adapter_goes_on_from_what_was_exported(trainer):
    """An export reads the weights: it changes nothing."""
    before = logprobs(trainer)
    trainer.save_weights_external("again").result(timeout=LONG)
    np.testing.assert_array_equal(logprobs(trainer), before)
    sampler = trainer.save_weights_and_get_sampling_client().result(timeout=LONG)
    scored = sampler.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result(timeout=LONG)
    assert scored[1:] == pytest.approx(before, abs=1e-4)
