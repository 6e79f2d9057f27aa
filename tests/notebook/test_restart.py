"""``serve(..., restart=True)``: what must not cost the running lab, what a replacement keeps, and what it says."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import tinker

from tests.models.tiny import make_tiny
from txlab.config import EngineSettings, ModelSettings, ServerSettings, Settings, StoreSettings
from txlab.notebook import preparation
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TXLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def lab(tiny_llama: Path) -> Iterator[Lab]:
    running = serve(str(tiny_llama), settings=Settings(engine=EngineSettings(warm_up=False)))
    yield running
    if Lab.current is not None:
        Lab.current.stop()


def with_config(folder: Path, **entries: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


def half_written(folder: Path) -> Path:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def a_file(path: Path) -> Path:
    path.write_text("no folder")
    return path


MISTAKES: dict[str, tuple[Callable[[Path], dict], str]] = {
    "a typo": (lambda path: {"model": "nobody/typo"}, "nobody/typo"),
    "another architecture": (lambda path: {"model": with_config(make_tiny(path), architectures=["Bert"])}, "Bert"),
    "layers that are missing": (lambda path: {"model": with_config(make_tiny(path), num_hidden_layers=3)}, "lacks"),
    "half a file": (lambda path: {"model": half_written(make_tiny(path))}, "model.safetensors"),
    "a loop": (lambda path: {"loop": "turbo"}, "no loop"),
    "a loop elsewhere": (lambda path: {"loop": "control"}, "only in a Jupyter kernel"),
    "a key": (lambda path: {"api_key": "mine"}, "tml-"),
    "a port": (lambda path: {"port": 70000}, "not a port"),
    "a root": (lambda path: {"root": a_file(path)}, "Checkpoints cannot be kept in"),
    "a flag": (lambda path: {"settings": Settings(server=ServerSettings(flags={"nonsense": 1}))}, "nonsense"),
    "a dtype": (lambda path: {"settings": Settings(model=ModelSettings(dtype="float33"))}, "float33"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_does_not_cost_the_lab(lab: Lab, mistake: str, tmp_path: Path) -> None:
    client = tinker.ServiceClient().create_lora_training_client(base_model=lab.model, rank=4).result()
    asked, message = MISTAKES[mistake][0](tmp_path / "asked"), MISTAKES[mistake][1]
    model = asked.pop("model", lab.model)
    with pytest.raises(TxlabError, match=message):
        serve(str(model), restart=True, **asked)
    assert Lab.current is lab
    assert client.get_info().model_data.model_name == lab.model
    assert [adapter.state for adapter in lab.status().view.adapters] != ["unloaded"]


def test_a_port_that_is_taken_does_not_cost_the_lab(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(TxlabError, match="in use"):
        serve(lab.model, port=taken.getsockname()[1], restart=True)
    assert Lab.current is lab


def test_a_model_that_is_too_large_does_not_cost_the_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "available_bytes", lambda: 0)  # the machine is full
    with pytest.raises(TxlabError, match=r"GB in float32.*when the running lab is gone"):
        serve(lab.model, restart=True)  # the largest tensor lies in memory twice
    assert Lab.current is lab
    monkeypatch.setattr(preparation, "available_bytes", lambda: 10**5)  # enough with what the old lab gives back
    assert serve(lab.model, restart=True) is not lab


def test_port_and_key_stay_so_that_clients_see_the_end_of_their_session(lab: Lab) -> None:
    client = tinker.ServiceClient().create_lora_training_client(base_model=lab.model, rank=4).result()
    again = serve(lab.model, restart=True)
    assert (again.url, again.api_key) == (lab.url, lab.api_key)
    assert not lab.running
    datum = tinker.types.Datum(
        model_input=tinker.types.ModelInput.from_ints([5, 6]),
        loss_fn_inputs={"target_tokens": [6, 7], "weights": [1.0, 1.0]},
    )
    with pytest.raises(tinker.TinkerError):
        client.forward([datum], "cross_entropy").result(timeout=60)
    tinker.ServiceClient().create_lora_training_client(base_model=lab.model, rank=4).result(timeout=60)


def test_another_port_and_key_where_they_are_asked_for(lab: Lab) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    again = serve(lab.model, port=port, api_key="tml-other", restart=True)
    assert (again.url, again.api_key) == (f"http://127.0.0.1:{port}", "tml-other")


def test_weights_that_fail_say_that_the_old_lab_is_gone(lab: Lab, tmp_path: Path) -> None:
    folder = with_config(make_tiny(tmp_path / "misshapen"), intermediate_size=96)
    with pytest.raises(TxlabError, match="shape") as failed:
        serve(str(folder), restart=True)
    assert Lab.current is None
    assert any("is stopped" in note for note in failed.value.__notes__)
    assert "is stopped" in "\n".join(failed.value._render_traceback_())
    told = httpx.get(f"{lab.url}/api/v1/get_server_capabilities")
    assert (told.status_code, "make a new ServiceClient" in told.text) == (400, True)
    lab.stop(keep_port=False)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", lab.port))


def test_the_same_settings_again_are_the_same_lab(tmp_path: Path, tiny_llama: Path) -> None:
    settings = Settings(model=ModelSettings(name=str(tiny_llama)), store=StoreSettings(root=tmp_path / "root"))
    serve(settings=settings)
    again = serve(settings=settings, restart=True)
    try:
        assert serve(settings=settings) is again
    finally:
        again.stop()
