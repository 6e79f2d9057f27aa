"""The variables that lead the SDK to the lab: while it runs, and afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tinker

from txlab.notebook.sdk_environment import SdkEnvironment, proxy_exports

LAB = "http://127.0.0.1:40123"
NAMES = ("TINKER_BASE_URL", "TINKER_API_KEY", "TINKER_CREDENTIAL_CMD", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no stored key of the SDK."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back at the end, whoever sets it
        del os.environ[name]


def now() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def served(meanwhile: Callable[[], object] = lambda: None) -> str:
    """Point to a lab and release; what is said."""
    variables = SdkEnvironment(LAB, "tml-lab")
    variables.point()
    assert (os.environ["TINKER_BASE_URL"], os.environ["TINKER_API_KEY"]) == (LAB, "tml-lab")
    meanwhile()
    return variables.release()


def uses() -> list[Callable[[], object]]:
    return [
        lambda: tinker.ServiceClient().create_lora_training_client(base_model="m"),
        lambda: tinker.ServiceClient().create_sampling_client(base_model="m"),
        lambda: tinker.ServiceClient().create_training_client_from_state("tinker://a/weights/b"),
        lambda: tinker.ServiceClient(api_key="tml-given").create_sampling_client(base_model="m"),
        lambda: tinker.RestClient().get_server_capabilities(),
    ]


def assert_refused(because: str) -> None:
    """Every use of the SDK fails before it opens a connection, within a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx.AsyncClient.send", lambda *_, **__: pytest.fail("a request was sent"))
        for use in uses():
            started = time.monotonic()
            with pytest.raises(Exception, match=because):
                use()
            assert time.monotonic() - started < 1


def test_without_an_address_nothing_is_sent_afterwards() -> None:
    assert "raises" in served()
    assert_refused("no lab runs here: start one with %txserve")


def test_a_key_of_the_users_does_not_go_to_the_hosted_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-mine")
    said = served()
    assert os.environ["TINKER_API_KEY"] == "tml-mine"
    assert_refused("no lab runs here")
    assert "For the hosted service, with your own key: del os.environ['TINKER_BASE_URL']" in said
    del os.environ["TINKER_BASE_URL"]  # as told
    assert now() == {"TINKER_API_KEY": "tml-mine"}


def test_nor_do_the_other_ways_to_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINKER_CREDENTIAL_CMD", f"touch {tmp_path / 'ran'}; echo tml-mine")
    assert "del os.environ" in served()
    assert "TINKER_API_KEY" not in os.environ
    assert not (tmp_path / "ran").exists()
    monkeypatch.delenv("TINKER_CREDENTIAL_CMD")
    (tmp_path / ".tinker").mkdir()
    (tmp_path / ".tinker" / "credentials.json").write_text("{}")
    assert "del os.environ" in served()


def test_an_address_of_the_users_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", "http://mine")
    before = now()
    assert "TINKER_BASE_URL is http://mine again" in served()
    assert now() == before
    monkeypatch.setenv("TINKER_API_KEY", "tml-mine")
    before = now()
    served()
    assert now() == before


def test_what_an_earlier_lab_left_is_not_the_users() -> None:
    first, second = served(), served()
    assert first == second
    assert_refused("no lab runs here")


def test_what_the_user_changes_meanwhile_stays() -> None:
    assert "TINKER_BASE_URL is http://mine: ServiceClient() means that" in served(
        lambda: os.environ.update(TINKER_BASE_URL="http://mine", TINKER_API_KEY="tml-mine")
    )
    assert now() == {"TINKER_BASE_URL": "http://mine", "TINKER_API_KEY": "tml-mine"}
    os.environ.pop("TINKER_API_KEY")
    assert "hosted service" in served(lambda: os.environ.pop("TINKER_BASE_URL"))
    assert now() == {}, "who removes the address has the SDK's own"


# --------------------------------------------------------------------------------------------- proxies


@pytest.mark.parametrize(
    ("before", "meant"),
    [
        ({}, {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}),
        ({"NO_PROXY": "corp, x"}, {"NO_PROXY": "corp, x,127.0.0.1", "no_proxy": "corp, x,127.0.0.1"}),
        ({"no_proxy": "corp"}, {"NO_PROXY": "corp,127.0.0.1", "no_proxy": "corp,127.0.0.1"}),
        ({"NO_PROXY": "a", "no_proxy": "b"}, {"NO_PROXY": "a,127.0.0.1", "no_proxy": "b,127.0.0.1"}),
        ({"NO_PROXY": "*", "no_proxy": "x,127.0.0.1"}, {"NO_PROXY": "*", "no_proxy": "x,127.0.0.1"}),
    ],
)
def test_no_proxy_stands_before_the_lab(before: dict[str, str], meant: dict[str, str]) -> None:
    os.environ.update(before)
    seen: dict[str, str] = {}
    served(lambda: seen.update({name: os.environ[name] for name in meant}))
    assert seen == meant
    assert {name: value for name, value in now().items() if name in meant} == before


def test_a_proxy_list_that_was_changed_meanwhile_loses_the_lab_only() -> None:
    os.environ["NO_PROXY"] = "corp"

    def change() -> None:
        os.environ["NO_PROXY"] += ",more"
        os.environ["no_proxy"] = "other"

    served(change)
    assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == ("corp,more", "other")


def test_addresses_of_version_six() -> None:
    variables = SdkEnvironment("http://[::1]:40123", "tml-lab")
    variables.point()
    assert os.environ["NO_PROXY"] == "::1"
    variables.release()
    assert proxy_exports("http://[::1]:40123").count(",::1") == 2


@pytest.mark.parametrize("shell", [["bash", "-euc"], ["sh", "-euc"]], ids=["bash", "sh"])
@pytest.mark.parametrize(
    ("before", "meant"),
    [
        ({}, [",127.0.0.1", ",127.0.0.1"]),
        ({"NO_PROXY": "corp"}, ["corp,127.0.0.1", "corp,127.0.0.1"]),
        ({"no_proxy": "corp"}, ["corp,127.0.0.1", "corp,127.0.0.1"]),
        ({"NO_PROXY": "a", "no_proxy": "b"}, ["a,127.0.0.1", "b,127.0.0.1"]),
    ],
)
def test_the_proxy_line_works_in_a_shell_that_refuses_unset_variables(
    shell: list[str], before: dict[str, str], meant: list[str]
) -> None:
    script = f"{proxy_exports('http://127.0.0.1:40123')}\nprintenv NO_PROXY no_proxy"
    done = subprocess.run([*shell, script], env={"PATH": os.environ["PATH"]} | before, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (meant, "")


DEAD = "http://127.0.0.1:9"
PROXIES = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
ROUND_TRIP = """
import sys, tinker
from tinker import types
client = tinker.ServiceClient().create_lora_training_client(base_model=sys.argv[1], rank=4).result(60)
datum = types.Datum(types.ModelInput.from_ints([5, 6]), {"target_tokens": [6, 7], "weights": [1.0, 1.0]})
print("loss", client.forward([datum], "cross_entropy").result(60).metrics["loss:sum"])
"""
BEHIND_A_PROXY = f"""
import sys, tinker, txlab
from txlab.config import ServerSettings
lab = txlab.serve(sys.argv[1], settings=txlab.Settings(server=ServerSettings(host=sys.argv[2])))
print(lab.sample("a", max_tokens=2))
{ROUND_TRIP}
import httpx, openai
rest = tinker.RestClient(base_url=lab.url, api_key=lab.api_key).get_server_capabilities().result(20)
print("rest", len(rest.supported_models))
made = openai.OpenAI(base_url=lab.url + "/v1", api_key=lab.api_key, max_retries=0, timeout=20)
print("openai", len(made.completions.create(model=lab.model, prompt="a", max_tokens=2).choices))
print("httpx", httpx.get(lab.url + "/api/v1/healthz").status_code)
"""


def behind(proxies: dict[str, str], *command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in env.items() if name.lower() not in {*map(str.lower, PROXIES), "no_proxy"}}
    return subprocess.run(command, env=env | proxies, capture_output=True, text=True, timeout=150)


@pytest.mark.parametrize(
    ("proxies", "host"),
    [
        ({"HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD, "NO_PROXY": "corp"}, "127.0.0.1"),
        ({"ALL_PROXY": DEAD, "http_proxy": DEAD}, "::1"),
    ],
    ids=["http", "all"],
)
def test_the_sdk_reaches_the_lab_behind_a_dead_proxy(
    tiny_llama: Path, lab_env: dict[str, str], proxies: dict[str, str], host: str
) -> None:
    done = behind(proxies, sys.executable, "-c", BEHIND_A_PROXY, str(tiny_llama), host, env=lab_env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()[-4:]] == ["loss", "rest", "openai", "httpx"]


TERMINAL = """
import json, subprocess, sys, txlab
lab = txlab.serve(sys.argv[1])
script = f"{lab.exports()}\\n{sys.executable} {sys.argv[2]} {lab.model}"
done = subprocess.run(["bash", "-c", script], env=json.loads(sys.argv[3]), capture_output=True, text=True, timeout=100)
print(done.stdout, done.stderr)
"""


def test_the_exports_reach_the_lab_behind_a_dead_proxy(
    tiny_llama: Path, lab_env: dict[str, str], tmp_path: Path
) -> None:
    """A terminal has a proxy that the kernel knows nothing of."""
    terminal = lab_env | {"HTTP_PROXY": DEAD, "http_proxy": DEAD}
    terminal["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{terminal['PATH']}"
    program = tmp_path / "program.py"
    program.write_text(ROUND_TRIP)
    arguments = (str(tiny_llama), str(program), json.dumps(terminal))
    done = behind({}, sys.executable, "-c", TERMINAL, *arguments, env=lab_env)
    assert "loss" in done.stdout, done.stdout + done.stderr[-2000:]
