"""The command line in processes of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.notebook.conftest import free_port
from tests.signals import default_signals
from txlab import cli
from txlab.notebook.errors import TxlabError

ENV_OFF = {"HF_HUB_OFFLINE": "1", "TINKER_TELEMETRY": "0", "JAX_PLATFORMS": "cpu", "PIP_NO_INDEX": "1"}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    own = {name: str(home / name.lower()) for name in ("TXLAB_HOME", "TXLAB_CACHE", "HF_HOME", "JUPYTER_RUNTIME_DIR")}
    other = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    return other | ENV_OFF | own


def txlab(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "txlab.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def start_server(*arguments: str, env: dict[str, str], ignored: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """``txlab serve`` in a process that begins with the signals ``ignored``, and all others at their defaults."""
    command = [sys.executable, "-m", "txlab.cli", "serve", *arguments]
    with default_signals(ignored=ignored):
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_serve_until_interrupted(tiny_llama: Path, env: dict[str, str]) -> None:
    server = start_server(str(tiny_llama), "--api-key", "tml-mine", env=env)
    assert server.stdout is not None
    lines = [server.stdout.readline() for _ in range(4)]
    assert str(tiny_llama) in lines[0]
    assert lines[2] == 'export TINKER_API_KEY="$(txlab key)"\n'
    if shutil.which("ps"):
        listed = ["ps", "-ww", "-o", "args=", "-p", str(server.pid)]
        assert "tml-mine" not in subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    assert txlab("key", env=env).stdout == "tml-mine\n"
    url = lines[1].strip().removeprefix("export TINKER_BASE_URL=")
    answer = httpx.get(f"{url}/api/v1/get_server_capabilities", headers={"X-API-Key": "tml-mine"})
    assert answer.json()["supported_models"][0]["model_name"] == str(tiny_llama)
    assert httpx.get(f"{url}/api/v1/get_server_capabilities").status_code == 401
    server.send_signal(signal.SIGINT)
    _, errors = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="is about POSIX signals")
@pytest.mark.parametrize(
    ("ignored", "without_effect", "ends"),
    [
        ((), None, "SIGTERM"),
        ((), None, "SIGHUP"),
        (("SIGINT",), None, "SIGINT"),  # in the background of a script
        (("SIGHUP",), "SIGHUP", "SIGTERM"),  # below nohup
    ],
)
def test_signals_that_end_a_server(
    tiny_llama: Path, env: dict[str, str], tmp_path: Path, ignored: tuple[str, ...], without_effect: str, ends: str
) -> None:
    numbers = tuple(getattr(signal, name) for name in ignored)
    port = free_port()
    server = start_server(
        str(tiny_llama), "--port", str(port), env=env | {"JUPYTER_RUNTIME_DIR": str(tmp_path)}, ignored=numbers
    )
    try:
        assert server.stdout is not None
        assert "Ctrl-C stops it.\n" in iter(server.stdout.readline, "")
        assert [*tmp_path.glob("txlab-*.json")] != []
        if without_effect:
            server.send_signal(getattr(signal, without_effect))
            for _ in range(3):
                assert httpx.get(f"http://127.0.0.1:{port}/api/v1/healthz").status_code == 200
        server.send_signal(getattr(signal, ends))
        _, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == 0
    assert "Traceback" not in errors
    assert [*tmp_path.glob("txlab-*.json")] == []


@pytest.mark.parametrize("given", [["--api-key", "tml-k"], ["--api-key=tml-k"], ["--api", "tml-k"]])
def test_a_key_is_taken_off_the_command_line(given: list[str]) -> None:
    words = ["python", "-m", "txlab.cli", "serve", "model", *given, "--port", "1"]
    assert cli.without_key(words, "tml-k") == ["python", "-m", "txlab.cli", "serve", "model", "--port", "1"]


ELSEWHERE = """
import signal, threading, time
from txlab.cli import wait_for_interrupt

def interrupt():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt, daemon=True).start()
try:
    wait_for_interrupt()
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="is about POSIX threads")
def test_an_interrupt_that_another_thread_gets_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "interrupted\n"


def test_bad_input_is_one_message(tiny_llama: Path, env: dict[str, str]) -> None:
    unknown = txlab("serve", "nobody/nothing", env=env)
    assert unknown.returncode == 1
    assert "txlab fetch nobody/nothing" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        in_use = txlab("serve", str(tiny_llama), "--port", str(port), env=env)
    assert in_use.returncode == 1
    assert in_use.stderr.startswith(f"txlab: Port {port} of 127.0.0.1 is in use.")
    assert len(in_use.stderr.splitlines()) == 1


def test_a_platform_without_its_device_is_one_message(tiny_llama: Path, env: dict[str, str]) -> None:
    served = txlab("serve", str(tiny_llama), env=env | {"JAX_PLATFORMS": "no_such_platform"})
    assert served.returncode == 1
    assert served.stderr.startswith("txlab: JAX finds no device for JAX_PLATFORMS=no_such_platform")
    assert "JAX_PLATFORMS=cpu" in served.stderr
    assert len(served.stderr.splitlines()) == 1


def test_damaged_files_are_one_message(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "home").touch()
    served = txlab("serve", str(tmp_path), env=env)
    fetched = txlab("fetch", str(tmp_path / "none"), env=env)
    homeless = txlab("serve", str(tmp_path), env=env | {"TXLAB_HOME": str(tmp_path / "home")})
    uncached = txlab("fetch", env=env | {"TXLAB_CACHE": str(tmp_path / "home")})
    for run, part in (
        (served, "is a Git LFS pointer"),
        (fetched, "no such folder"),
        (homeless, "TXLAB_HOME"),
        (uncached, "TXLAB_CACHE"),
    ):
        assert run.returncode == 1
        assert part in run.stderr
        assert len(run.stderr.splitlines()) == 1, run.stderr


def test_fetch_says_where_the_model_is(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["fetch", str(tiny_llama)]) == 0
    assert str(tiny_llama) in capsys.readouterr().out


def test_fetch_without_network_and_cache_names_the_fix(env: dict[str, str]) -> None:
    offline = txlab("fetch", env=env)
    assert offline.returncode == 1
    assert "was not found" in offline.stderr
    assert "while online" in offline.stderr


def test_unknown_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["fetch", "--fast"])
    assert end.value.code == 2
    assert "--fast" in capsys.readouterr().err


def test_lab_opens_the_notebook_with_jupyterlabs_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(cli.subprocess, "call", lambda command: called.append(command) or 0)
    notebook = tmp_path / "mine.ipynb"
    notebook.touch()
    options = ["--no-browser", "--port", "8899"]
    assert cli.main(["lab", str(notebook), *options]) == 0
    assert called == [[sys.executable, "-m", "jupyterlab", str(notebook), *options]]
    monkeypatch.setattr(cli, "fetch", lambda model: 0)
    assert cli.main(["lab", *options]) == 0
    assert called[1][3:] == [str(cli.find_notebook("piglatin")), *options]
    assert cli.main(["lab", "piglatin", "--", *options]) == 0
    assert called[2] == called[1]


def test_lab_without_jupyterlab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["lab"]) == 1
    assert capsys.readouterr().err == "txlab: JupyterLab is not installed here: pip install jupyterlab.\n"


def test_lab_without_the_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lab", str(tmp_path / "piglatin.ipynb")]) == 1
    message = capsys.readouterr().err
    assert f"There is no notebook {tmp_path / 'piglatin.ipynb'}." in message
    assert "piglatin" in message.partition("Tutorials: ")[2]


def test_tutorial_is_the_clones_or_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    package = tmp_path / "site" / "txlab"
    (package / "notebooks").mkdir(parents=True)
    monkeypatch.setattr(cli, "__file__", str(package / "cli.py"))
    (package / "notebooks" / "piglatin.ipynb").write_text("packaged")
    assert cli.find_notebook("piglatin").read_text() == "packaged"
    (here / "piglatin.ipynb").write_text("mine")
    assert cli.find_notebook("piglatin").read_text() == "mine", "what a user has changed stays"
    (package.parent / "notebooks").mkdir()
    (package.parent / "notebooks" / "piglatin.ipynb").write_text("clone")
    assert cli.find_notebook("piglatin").read_text() == "clone"
    assert cli.find_notebook("piglatin.ipynb") == Path("piglatin.ipynb"), "a path is a path"


def test_tutorial_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.shutil, "copy", full)
    with pytest.raises(TxlabError, match="Cannot copy piglatin"):
        cli.copy_here(Path(cli.__file__).parent.parent / "notebooks" / "piglatin.ipynb")
