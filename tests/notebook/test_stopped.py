"""Clients of a lab that was stopped are told so by whatever is at its address afterwards."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from tinker import types

from tests.notebook.conftest import free_port
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve

SECONDS = 20  # the SDK itself would try for five minutes, or for ever
CURE = "make a new (tinker.)?ServiceClient"
PROMPT = types.ModelInput.from_ints([5, 6])
DATUM = types.Datum(model_input=PROMPT, loss_fn_inputs={"target_tokens": [6, 7], "weights": [1.0, 1.0]})
ONE = types.SamplingParams(max_tokens=2)


@pytest.fixture(autouse=True, scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TXLAB_HOME", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TINKER_TELEMETRY", "0")
        patch.delenv("TINKER_BASE_URL", raising=False)
        patch.delenv("TINKER_API_KEY", raising=False)
        yield


@dataclass
class Clients:
    """One of each kind, and what they were made with."""

    model: str
    service: tinker.ServiceClient
    training: tinker.TrainingClient
    sampling: tinker.SamplingClient
    saved: str

    @classmethod
    def of(cls, lab: Lab) -> Clients:
        service = tinker.ServiceClient(base_url=lab.url, api_key=lab.api_key)
        training = service.create_lora_training_client(base_model=lab.model, rank=4).result(60)
        sampling = training.save_weights_and_get_sampling_client().result(60)
        return cls(lab.model, service, training, sampling, training.save_state("kept").result(60).path)


CALLS: dict[str, Callable[[Clients], Any]] = {
    "forward_backward": lambda c: c.training.forward_backward([DATUM], "cross_entropy"),
    "forward": lambda c: c.training.forward([DATUM], "cross_entropy"),
    "optim_step": lambda c: c.training.optim_step(types.AdamParams()),
    "save_state": lambda c: c.training.save_state("later"),
    "save_for_sampler": lambda c: c.training.save_weights_for_sampler("later"),
    "new_sampler": lambda c: c.training.save_weights_and_get_sampling_client(),
    "sample": lambda c: c.sampling.sample(PROMPT, 1, ONE),
    "logprobs": lambda c: c.sampling.compute_logprobs(PROMPT),
    "new_training_client": lambda c: c.service.create_lora_training_client(base_model=c.model, rank=4),
    "new_sampling_client": lambda c: c.service.create_sampling_client(base_model=c.model),
    "from_state": lambda c: c.service.create_training_client_from_state(c.saved),
}
REST = {"rest": lambda c: c.service.create_rest_client().list_training_runs()}


@pytest.fixture
def lab(tiny_llama: Path) -> Iterator[Lab]:
    running = serve(str(tiny_llama))
    yield running
    if Lab.current is not None:
        Lab.current.stop(keep_port=False)
    running.stop(keep_port=False)


def refused(clients: Clients, calls: dict[str, Callable[[Clients], Any]]) -> dict[str, str]:
    """Errors that the calls raise."""
    told = {}
    for name, call in calls.items():
        with pytest.raises(Exception) as error:  # noqa: PT011 - each has a type of its own, and all are compared below
            call(clients).result(SECONDS)
        told[name] = f"{type(error.value).__name__}: {error.value}"
    return told


def assert_told(told: dict[str, str]) -> None:
    assert {name: text for name, text in told.items() if not re.search(CURE, text)} == {}


def test_old_clients_are_told_when_the_lab_is_stopped(lab: Lab) -> None:
    clients = Clients.of(lab)
    lab.stop()
    assert_told(refused(clients, CALLS | REST))
    clients.service.close("success").result(SECONDS)


def test_old_clients_are_told_by_the_next_lab(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    clients = Clients.of(lab)
    lab.stop()
    again = serve(lab.model)
    assert (again.url, again.api_key) == (lab.url, lab.api_key), "what terminals and other kernels know stays good"
    assert "make a new tinker.ServiceClient" in capsys.readouterr().out
    assert_told(refused(clients, CALLS))
    training = tinker.ServiceClient().create_lora_training_client(base_model=again.model, rank=4).result(60)
    assert training.forward([DATUM], "cross_entropy").result(60).metrics["loss:sum"] > 0
    clients.service.close("success").result(SECONDS)


def test_old_clients_are_told_by_a_lab_with_another_key(lab: Lab) -> None:
    clients = Clients.of(lab)
    lab.stop()
    again = serve(lab.model, api_key="tml-another")
    assert again.url == lab.url
    assert_told(refused(clients, CALLS))


def test_old_clients_are_told_beside_a_lab_at_another_port(lab: Lab) -> None:
    clients = Clients.of(lab)
    lab.stop()
    again = serve(lab.model, port=free_port())
    assert again.url != lab.url
    assert_told(refused(clients, {name: CALLS[name] for name in ("forward_backward", "sample", "new_training_client")}))


def test_what_waited_at_the_stop_is_told(lab: Lab) -> None:
    clients = Clients.of(lab)
    lab.pause(clients.training.model_id)
    waiting = clients.training.forward_backward([DATUM], "cross_entropy")
    lab.stop()
    assert_told(refused(clients, {"waiting": lambda _: waiting}))


def test_a_result_that_a_former_lab_has_is_told(lab: Lab) -> None:
    """The SDK asks for it until somebody answers."""
    clients = Clients.of(lab)
    asked = {"request_id": "forward_backward-0", "allow_metadata_only": True}
    lab.stop()
    at = f"{lab.url}/api/v1/retrieve_future"
    assert "ServiceClient" in httpx.post(at, json=asked).json()["error"]
    again = serve(lab.model)
    answer = httpx.post(at, json=asked, headers={"X-API-Key": again.api_key})
    assert answer.status_code == 404
    assert "ServiceClient" in answer.json()["detail"]
    assert clients.training.model_id


def test_a_heart_stops_beating(lab: Lab) -> None:
    beat = f"{lab.url}/api/v1/session_heartbeat"
    lab.stop()
    assert httpx.post(beat, json={"session_id": "x"}).status_code == 410
    again = serve(lab.model)
    assert httpx.post(beat, json={"session_id": "x"}, headers={"X-API-Key": again.api_key}).status_code == 410


def test_openai_clients_are_told(lab: Lab) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{lab.url}/v1", api_key=lab.api_key, max_retries=0)
    lab.stop()
    with pytest.raises(openai.BadRequestError, match="this lab was stopped"):
        client.completions.create(model=lab.model, prompt="a")


ELSEWHERE = """
import sys, tinker
from tinker import types
client = tinker.ServiceClient().create_lora_training_client(base_model=sys.argv[1], rank=4).result(60)
print("ready", flush=True)
sys.stdin.readline()
inputs = {"target_tokens": [6, 7], "weights": [1.0, 1.0]}
datum = types.Datum(model_input=types.ModelInput.from_ints([5, 6]), loss_fn_inputs=inputs)
try:
    client.forward_backward([datum], "cross_entropy").result(20)
except Exception as error:
    print(repr(error), flush=True)
"""


@pytest.mark.parametrize("afterwards", ["nothing", "a lab"])
def test_clients_of_other_processes_are_told(lab: Lab, afterwards: str) -> None:
    command = [sys.executable, "-c", ELSEWHERE, lab.model]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    lab.stop()
    if afterwards == "a lab":
        serve(lab.model)
    told, _ = other.communicate("\n", timeout=60)
    assert_told({"elsewhere": told})


# -------------------------------------------------------------------------------------------- the port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_the_port_is_kept_until_it_is_given_up(lab: Lab) -> None:
    said = lab.stop()
    assert f"Port {lab.port} is kept" in said
    assert not is_free(lab.port)
    assert "stopped" in lab.stop()
    assert not is_free(lab.port), "a second call does nothing"
    lab.stop(keep_port=False)
    assert is_free(lab.port)


def test_a_stop_can_free_the_port_at_once(lab: Lab) -> None:
    assert "port and memory are free" in lab.stop(keep_port=False)
    assert is_free(lab.port)


def test_a_lab_of_another_process_gets_the_port(lab: Lab) -> None:
    lab.stop()
    command = [sys.executable, "-m", "txlab.cli", "serve", lab.model, "--port", str(lab.port)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert f"at {lab.url} " in other.stdout.readline()
    finally:
        other.terminate()
        other.communicate(timeout=60)
    assert other.returncode == 0


def test_only_a_sign_gives_up_its_port(lab: Lab) -> None:
    lab.stop()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(TxlabError, match="is in use"):
        serve(lab.model, port=taken.getsockname()[1])


def test_a_start_that_fails_leaves_the_sign(lab: Lab) -> None:
    lab.stop()
    with pytest.raises(TxlabError, match="was not found"):
        serve("nobody/nothing")
    assert "this lab was stopped" in httpx.get(lab.url).json()["detail"]
    again = serve(lab.model)
    assert again.url == lab.url


@pytest.mark.skipif(not hasattr(os, "fork"), reason="is about forks")
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
def test_a_fork_does_not_hold_the_port(lab: Lab) -> None:
    lab.stop()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    lab.stop(keep_port=False)
    assert is_free(lab.port)
    os.close(writing)
    os.waitpid(child, 0)


def test_a_script_ends_beside_the_sign(tiny_llama: Path) -> None:
    script = f"import txlab\nlab = txlab.serve({str(tiny_llama)!r})\nlab.stop()\nprint('stopped')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("stopped\n")
    assert "Traceback" not in done.stderr
