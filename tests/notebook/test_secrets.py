"""The API key is where ``lab.api_key`` and ``txlab key`` find it, and nowhere that people look."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tinker
from tinker import types

from txlab import cli, proxy
from txlab.config import ServerSettings, Settings
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve

KEY = "tml-not-to-be-seen"


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TXLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("TINKER_BASE_URL", "TINKER_API_KEY", "TXLAB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lab(tiny_llama: Path) -> Iterator[Lab]:
    running = serve(str(tiny_llama), api_key=KEY)
    yield running
    running.stop(keep_port=False)


def note() -> Path:
    return Path(os.environ["JUPYTER_RUNTIME_DIR"], f"txlab-{os.getpid()}.json")


def use(lab: Lab) -> None:
    """Train and sample, and be refused."""
    service = tinker.ServiceClient()
    client = service.create_lora_training_client(base_model=lab.model, rank=4).result(60)
    datum = types.Datum(types.ModelInput.from_ints([5, 6]), {"target_tokens": [6, 7], "weights": [1.0, 1.0]})
    client.forward_backward([datum], "cross_entropy").result(60)
    client.optim_step(types.AdamParams()).result(60)
    with pytest.raises(tinker.RequestFailedError):
        client.forward_backward([datum], "no_such_loss").result(60)
    httpx.get(f"{lab.url}/api/v1/training_runs", headers={"X-API-Key": f"{KEY}-but-wrong"})
    service.close("success").result(20)


def test_nothing_that_is_shown_has_the_key(lab: Lab, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    use(lab)
    print(lab, lab._repr_html_(), lab.exports(), repr(lab.settings), repr(lab.status()), lab.status()._repr_html_())
    print(lab.logs(2000), repr(lab.board()), lab.history(lab.runs()[0].model_id), lab.runs(), proxy.running_labs())
    with pytest.raises(TxlabError, match="another key") as refused:
        serve(api_key="tml-another-secret")
    print(refused.value, httpx.get(f"{lab.url}/openapi.json").text, httpx.get(f"{lab.url}/docs").text)
    report = tmp_path / "report.html"
    lab.report(report)
    print(report.read_text(), repr(Settings(server=ServerSettings(api_key=KEY))))
    print(lab.stop(), lab, httpx.get(lab.url).text)
    shown = capsys.readouterr()
    assert "txlab key" in shown.out
    assert KEY not in shown.out + shown.err
    assert "tml-another-secret" not in shown.out


def test_no_file_but_the_note_has_it_and_that_is_the_users_alone(lab: Lab, tmp_path: Path) -> None:
    use(lab)
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holding == [note()]
    if os.name == "posix":
        assert stat.S_IMODE(note().stat().st_mode) == 0o600
    lab.stop()
    assert not note().exists()


def test_txlab_key_prints_it(lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    capsys.readouterr()
    port = str(lab.port)
    for ask in ([], ["--url", lab.url], ["--url", f"localhost:{port}"], ["--port", port]):
        assert cli.main(["key", *ask]) == 0
        assert capsys.readouterr().out == f"{KEY}\n"
    assert cli.main(["key", "--port", "1"]) == 1
    assert f"No lab of yours runs at port 1. Running: {lab.url}." in capsys.readouterr().err
    monkeypatch.setenv("TINKER_BASE_URL", "http://elsewhere")
    assert cli.main(["key"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "", "a key must not go to another address than its lab's"
    assert f"No lab of yours runs at $TINKER_BASE_URL, http://elsewhere. Running: {lab.url}." in shown.err
    lab.stop()
    assert cli.main(["key"]) == 1
    assert "No lab of yours runs on this machine" in capsys.readouterr().err


def test_of_several_labs_the_exported_one_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labs = [proxy.Announced(f"http://127.0.0.1:{port}", f"tml-{port}") for port in (2, 1)]
    monkeypatch.setattr("txlab.notebook.key_file.running_labs", lambda: labs)
    assert cli.main(["key"]) == 0
    assert capsys.readouterr().out == "tml-2\n", "the newest"
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:1/")
    assert cli.main(["key"]) == 0
    assert capsys.readouterr() == ("tml-1\n", "")
    assert cli.main(["key", "--port", "2"]) == 0
    assert capsys.readouterr().out == "tml-2\n"


def test_where_rights_cannot_be_kept_there_is_no_key(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_rights(*_: object) -> None:
        raise RuntimeError("Permissions assignment failed for secure file")

    monkeypatch.setattr("jupyter_core.paths.secure_write", without_rights)
    lab = serve(str(tiny_llama), api_key=KEY)
    try:
        assert KEY not in note().read_text()
        assert "# TINKER_API_KEY is lab.api_key" in lab.exports()
        assert "not to be found by txlab key" in lab.logs()
        assert cli.main(["key"]) == 1
        assert "lab.api_key" in capsys.readouterr().err
        assert proxy.announced() == [lab.url]
    finally:
        lab.stop(keep_port=False)


def test_a_key_of_the_environment_needs_no_argument(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXLAB_API_KEY", KEY)
    lab = serve(str(tiny_llama))
    lab.stop(keep_port=False)
    assert lab.api_key == KEY
    monkeypatch.setenv("TXLAB_API_KEY", "no-key")
    with pytest.raises(TxlabError, match="tml-"):
        serve(str(tiny_llama))
