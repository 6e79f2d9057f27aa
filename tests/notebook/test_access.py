"""The addresses of a lab."""

from __future__ import annotations

import pytest

from txlab.notebook.access import Access

EXPORTS = [
    "export TINKER_BASE_URL=http://127.0.0.1:40123",
    'export TINKER_API_KEY="$(txlab key)"',
    'export NO_PROXY="${NO_PROXY:-${no_proxy:-}},127.0.0.1" no_proxy="${no_proxy:-${NO_PROXY:-}},127.0.0.1"',
]


@pytest.fixture
def access(monkeypatch: pytest.MonkeyPatch) -> Access:
    for name in ("JUPYTERHUB_SERVICE_PREFIX", "JUPYTERHUB_PUBLIC_URL"):
        monkeypatch.delenv(name, raising=False)
    made = Access()
    made.url, made.api_key = "http://127.0.0.1:40123", "tml-key"
    return made


def test_without_a_hub_there_is_this_machine_only(access: Access) -> None:
    assert access.proxy_path is None
    assert access.exports().splitlines() == EXPORTS
    assert repr(access.exports()) == access.exports()


def test_a_hub_has_a_path_of_its_own(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ann/")
    assert access.proxy_path == "/user/ann/proxy/40123"
    assert "https://<the hub>/user/ann/proxy/40123" in access.exports()
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", "https://hub.example.com/user/ann/")
    *exports, first, second = access.exports().splitlines()
    assert exports == EXPORTS
    assert "'https://hub.example.com/user/ann/proxy/40123'" in first
    assert "default_headers_overrides" in second
    assert first[0] == second[0] == "#", "a terminal may evaluate all of it"
    access.url = ""
    assert access.proxy_path is None
