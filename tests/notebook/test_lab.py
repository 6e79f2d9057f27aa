"""The lab as a Python object, in this process and on a thread of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from txlab.config import ModelSettings, ServerSettings, Settings
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, environment, serve


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TXLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TINKER_BASE_URL", "http://elsewhere")
    monkeypatch.delenv("TINKER_API_KEY", raising=False)


@pytest.fixture
def lab(tiny_llama: Path) -> Iterator[Lab]:
    running = serve(str(tiny_llama))
    yield running
    running.stop()


def test_serve_points_the_sdk_here_and_stop_restores(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert os.environ["TINKER_BASE_URL"] == lab.url
    assert os.environ["TINKER_API_KEY"] == lab.api_key
    assert httpx.get(f"{lab.url}/api/v1/healthz").status_code == 200
    lab.stop()
    assert os.environ["TINKER_BASE_URL"] == "http://elsewhere"
    assert "TINKER_API_KEY" not in os.environ
    assert Lab.current is None
    lab.stop()  # harmless


def test_the_same_call_gives_the_running_lab(lab: Lab) -> None:
    port = int(lab.url.rsplit(":", 1)[1])
    assert serve() is lab
    assert serve(lab.model, port=port, api_key=lab.api_key, loop="thread") is lab


@pytest.mark.parametrize(
    "asked", [{"model": "other"}, {"port": 1}, {"api_key": "tml-x"}, {"loop": "control"}, {"root": "/x"}]
)
def test_another_lab_needs_restart(lab: Lab, asked: dict[str, object]) -> None:
    with pytest.raises(TxlabError, match="restart=True"):
        serve(**asked)  # type: ignore[arg-type]
    assert Lab.current is lab


def test_a_second_lab_beside_it_is_refused(lab: Lab) -> None:
    with pytest.raises(TxlabError, match="already serves"):
        Lab(lab.settings).start()


def test_it_shows_itself(lab: Lab) -> None:
    assert lab.url in repr(lab)
    assert lab.api_key in lab._repr_html_()
    assert lab.api_key in lab.exports()
    assert "no adapters yet" in repr(lab.status())
    lab.stop()
    assert "stopped" in repr(lab) + lab._repr_html_() + repr(lab.status())
    assert "Started server process" in lab.logs()
    with pytest.raises(TxlabError, match="stopped"):
        lab.board()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(model=ModelSettings(name="nobody/nothing")), "txlab fetch nobody/nothing"),
        (Settings(server=ServerSettings(api_key="secret")), "tml-"),
        (Settings(server=ServerSettings(port=70000)), "70000 is not a port"),
    ],
)
def test_a_start_that_fails_leaves_nothing_open(settings: Settings, message: str) -> None:
    with pytest.raises(TxlabError, match=message):
        Lab(settings).start()
    assert Lab.current is None
    assert os.environ["TINKER_BASE_URL"] == "http://elsewhere"


def test_a_failed_start_frees_its_port() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TxlabError, match="was not found"):
        serve("nobody/nothing", port=port)
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_a_model_that_disagrees_with_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(TxlabError, match=r"(?i)bert"):
        serve(str(tmp_path))


def test_environment_keeps_what_others_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    with environment({"TINKER_BASE_URL": "http://ours"}):
        monkeypatch.setenv("TINKER_BASE_URL", "http://the-users")
    assert os.environ["TINKER_BASE_URL"] == "http://the-users"
