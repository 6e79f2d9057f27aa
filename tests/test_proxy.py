"""Labs behind a real Jupyter server with jupyter-server-proxy, reached by the SDK and by plain HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import httpx
import pytest
import tinker

from txlab import proxy
from txlab.notebook.lab import Lab, serve

BASE = "/user/ann/"
TOKEN = "hub-token"
HUB = {"Authorization": f"token {TOKEN}"}  # what Jupyter wants to see; the lab wants its own key beside it


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TXLAB_HOME", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TINKER_TELEMETRY", "0")
        patch.setenv("JUPYTERHUB_SERVICE_PREFIX", BASE)
        yield


@pytest.fixture(scope="module")
def jupyter(folders: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Jupyter server, as a hub runs one for each user; its port is its own choice."""
    command = [sys.executable, "-m", "jupyter", "server", "--no-browser", "--allow-root", "--ServerApp.port=0"]
    command += [f"--ServerApp.base_url={BASE}", f"--IdentityProvider.token={TOKEN}"]
    root = tmp_path_factory.mktemp("notebooks")
    server = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    try:
        yield _address(server)
    finally:
        server.terminate()
        server.wait(30)


def _address(server: subprocess.Popen[bytes]) -> str:
    info = Path(os.environ["JUPYTER_RUNTIME_DIR"], f"jpserver-{server.pid}.json")
    for _ in range(600):
        assert server.poll() is None, "the Jupyter server ended"
        if info.exists() and (text := info.read_text()):
            return f"http://127.0.0.1:{json.loads(text)['port']}{BASE}"
        time.sleep(0.1)
    raise AssertionError("the Jupyter server does not start")


@pytest.fixture
def lab(tiny_llama: Path) -> Iterator[Lab]:
    running = serve(str(tiny_llama))
    yield running
    running.stop()


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers={**HUB, **headers}, timeout=60)


def test_the_entry_point_is_installed_and_light() -> None:
    (entry,) = entry_points(group="jupyter_serverproxy_servers", name="txlab")
    assert entry.load() is proxy.server_process
    heavy = "{'jax', 'numpy', 'fastapi', 'IPython', 'transformers'}"
    code = f"import sys, txlab.proxy; txlab.proxy.server_process(); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_sdk_trains_through_the_proxy(jupyter: str, lab: Lab) -> None:
    host = jupyter.removesuffix(BASE)
    assert lab.proxy_path is not None
    assert lab.proxy_path.startswith(f"{BASE}proxy/")
    for base_url in (f"{jupyter}txlab", host + lab.proxy_path):
        service = tinker.ServiceClient(
            base_url=base_url, api_key=lab.api_key, default_headers_overrides=HUB, user_metadata={"via": base_url}
        )
        client = service.create_lora_training_client(base_model=lab.model, rank=4).result()
        datum = tinker.types.Datum(
            model_input=tinker.types.ModelInput.from_ints([5, 6, 7]),
            loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [1.0, 1.0, 1.0]},
        )
        assert client.forward_backward([datum], "cross_entropy").result().metrics["loss:sum"] > 0
        client.save_weights_for_sampler("kept").result()
        run = f"{base_url}/api/v1/training_runs/{client.model_id}"
        asked = get(f"{run}/checkpoints/sampler_weights/kept/archive", **{"X-API-Key": lab.api_key})
        assert asked.headers["Location"].startswith(f"{base_url}/api/v1/training_runs/")
        assert b"adapter_model.safetensors" in get(asked.headers["Location"]).content
        service.close("success").result()
    assert len(lab.status().view.adapters) == 2


def test_both_doors_are_locked(jupyter: str, lab: Lab) -> None:
    api = "/api/v1/get_server_capabilities"
    key = {"X-API-Key": lab.api_key}
    assert get(f"{jupyter}txlab{api}", **key).status_code == 200
    assert get(f"{jupyter}txlab{api}").status_code == 401, "the lab's own key is missing"
    without_token = httpx.get(f"{jupyter}txlab{api}", headers=key, timeout=60)
    assert without_token.status_code in (302, 403), "Jupyter's token is missing"


def test_the_documentation_knows_where_it_is(jupyter: str, lab: Lab) -> None:
    page = get(f"{jupyter}txlab/docs").text
    assert f"'{BASE}txlab/openapi.json'" in page or f'"{BASE}txlab/openapi.json"' in page
    assert get(f"{jupyter}txlab/openapi.json").json()["servers"] == [{"url": f"{BASE}txlab"}]
    assert "servers" not in httpx.get(f"{lab.url}/openapi.json").json()


def test_it_follows_the_labs(jupyter: str, tiny_llama: Path) -> None:
    health = f"{jupyter}txlab/api/v1/healthz"
    assert get(health).status_code == 503
    assert "%txserve" in get(health).text
    first = serve(str(tiny_llama))
    assert get(health).status_code == 200
    first.stop()
    assert get(health).status_code == 503
    second = serve(str(tiny_llama))
    assert get(health).status_code == 200
    second.stop()


KILLED = """
import sys, txlab
lab = txlab.serve(sys.argv[1])
print("there", flush=True)
sys.stdin.read()
"""


def test_a_lab_that_died_is_named(jupyter: str, tiny_llama: Path) -> None:
    health = f"{jupyter}txlab/api/v1/healthz"
    command = [sys.executable, "-c", KILLED, str(tiny_llama)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert "there\n" in iter(other.stdout.readline, "")
    (url,) = proxy.announced()
    assert get(health).status_code == 200
    other.kill()
    other.communicate()
    for _ in range(2):  # also when the note is gone
        answer = get(health)
        assert answer.status_code == 503
        assert f"The lab at {url} has ended" in answer.text
    again = serve(str(tiny_llama))
    assert get(health).status_code == 200
    again.stop()


# ------------------------------------------------------------------------------------------- the notes


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path / "runtime"


ELSEWHERE = """
import sys
from txlab.proxy import announce
with announce(sys.argv[1]):
    print("there", flush=True)
    sys.stdin.read()
"""


def test_the_newest_lab_comes_first_and_a_killed_one_is_forgotten(runtime: Path) -> None:
    with proxy.announce("http://127.0.0.1:1"):
        command = [sys.executable, "-c", ELSEWHERE, "http://127.0.0.1:2"]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        assert proxy.announced() == ["http://127.0.0.1:2", "http://127.0.0.1:1"]
        other.kill()
        other.communicate()
        assert (runtime / f"txlab-{other.pid}.json").exists()
        assert proxy.announced() == ["http://127.0.0.1:1"]
    assert proxy.announced() == []
    assert [*runtime.iterdir()] == []


def test_a_note_that_cannot_be_read_is_passed_over(runtime: Path) -> None:
    with proxy.announce("http://127.0.0.1:1"):
        (runtime / f"txlab-{os.getpid()}.json").write_text("{")
        assert proxy.announced() == []


def test_a_runtime_folder_that_cannot_be_written_stops_no_lab(runtime: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime.write_text("a file, where a folder should be")
    with proxy.announce("http://127.0.0.1:1"):
        pass
    assert "not to be found at /txlab/" in caplog.text
