"""Keys and tokens: raw, through the SDK, and through ``tinker auth``."""

from __future__ import annotations

import time
from collections import Counter

import httpx
import jwt
import pytest
import tinker
from click.testing import CliRunner
from tinker import types
from tinker.cli.__main__ import main_cli
from tinker.lib.internal_client_holder import sessionless_holder_cache

from tests.server.conftest import serve
from txlab.config import ServerSettings
from txlab.server.auth import Credentials, check_api_key

KEY = "tml-a-key-of-the-tests"
PROMPT = types.ModelInput.from_ints([1, 2, 3])


@pytest.fixture
def server(engine, tmp_path):
    with serve(engine, tmp_path / "store", ServerSettings(poll_seconds=0.5, api_key=KEY, jwt=True)) as running:
        yield running


@pytest.fixture
def tinker_cli(server, tmp_path, monkeypatch):
    """Runs the ``tinker`` command against the server, with a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    monkeypatch.setattr(sessionless_holder_cache, "_holders", {})  # the SDK's of this process, maybe of another server
    return lambda *arguments: CliRunner().invoke(main_cli, arguments)


def show(server, credential, header="X-API-Key"):
    headers = {header: credential}
    return httpx.get(f"{server.url}/api/v1/get_server_capabilities", headers=headers, timeout=20)


def token_of(server) -> str:
    return server.post("auth/token", {}).json()["jwt"]


# --------------------------------------------------------------------------------------------- raw


def test_a_token_is_as_good_as_the_key(server):
    token = token_of(server)
    assert show(server, token).status_code == 200
    assert show(server, f"Bearer {token}", "Authorization").status_code == 200
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 3600
    assert {"sub", "org_id", "email"} < claims.keys()
    assert claims["iss"].startswith("passport-")
    again = server.post("auth/token", {}, headers={"X-API-Key": token}).json()["jwt"]
    assert again == token, "it does not renew itself"


def test_tokens_that_are_not_good_say_so(server):
    header, claims, _ = token_of(server).split(".")
    unsigned = jwt.encode({"exp": time.time() + 60, "iat": time.time(), "iss": "passport-local"}, None, "none")
    for token in (
        Credentials(KEY, token_seconds=-5).exchange(KEY.encode()),  # expired
        Credentials("tml-other", 60).exchange(b"tml-other"),
        f"{header}.{claims}.AAAA",
        unsigned,
        "eyJ",
    ):
        response = show(server, token)
        assert response.status_code == 401
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
        assert "exchange the API key" in response.json()["detail"]
    wrong = show(server, "tml-wrong")
    assert wrong.status_code == 401
    assert "www-authenticate" not in wrong.headers
    assert server.post("auth/token", {}, headers={"X-API-Key": "tml-wrong"}).status_code == 401


def test_tokens_outlive_the_process_but_not_the_key():
    token = Credentials(KEY, 60).exchange(KEY.encode()).encode()
    assert Credentials(KEY, 60).accepts(token)
    assert not Credentials("tml-new", 60).accepts(token)
    assert Credentials(KEY, 60).key_id != Credentials("tml-new", 60).key_id


@pytest.mark.parametrize("key", [None, "", "sk-1", "tml-ä"])
def test_keys_that_the_sdk_refuses_are_refused(key):
    with pytest.raises(ValueError, match="tml-"):
        check_api_key(key)


def test_the_only_key_is_not_revoked(server):
    response = httpx.delete(f"{server.url}/api/v1/auth/apikey/me", headers={"X-API-Key": KEY}, timeout=20)
    assert response.status_code == 400
    assert int(response.headers["content-length"]) > 0
    assert "only key" in response.json()["detail"]
    assert show(server, KEY).status_code == 200


# --------------------------------------------------------------------------------------------- SDK


def test_a_session_with_tokens(server):
    service = server.client()
    client = service.create_lora_training_client(base_model="fake/model", rank=8).result()
    sampler = client.save_weights_and_get_sampling_client().result(timeout=20)
    assert sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=2)).result(timeout=20).sequences
    who = tinker.RestClient(base_url=server.url, api_key=server.key).whoami().result(timeout=20)
    assert who.user_urn.startswith("tml:user:")
    assert who.org_urn.startswith("tml:organization:")
    assert "@" in who.email


def test_a_token_that_is_rejected_is_replaced_and_the_request_sent_again(server, monkeypatch):
    credentials, exchanged, exchange = server.state.credentials, Counter(), server.state.credentials.exchange
    monkeypatch.setattr(credentials, "exchange", lambda given: exchanged.update([given]) or exchange(given))
    service = server.client()
    sampler = service.create_sampling_client(base_model="fake/model").result()
    assert exchanged.total() == 1
    service.holder._default_auth._token = Credentials("tml-other", 3600).exchange(b"tml-other")
    assert sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=2)).result(timeout=20).sequences
    assert exchanged.total() == 2


def test_an_expired_token_is_replaced(server):
    service = server.client()
    client = service.create_lora_training_client(base_model="fake/model", rank=8).result()
    service.holder._default_auth._token = Credentials(KEY, -5).exchange(KEY.encode())
    assert client.optim_step(types.AdamParams(learning_rate=1.0)).result(timeout=20).metrics["step"] == 1


def test_a_token_serves_as_the_key_of_a_client(server):
    rest = tinker.RestClient(base_url=server.url, api_key=token_of(server))
    assert rest.get_server_capabilities().result(timeout=20).supported_models


def test_without_the_setting_the_key_itself_is_sent(engine, tmp_path):
    with serve(engine, tmp_path / "store", ServerSettings()) as server:
        rest = tinker.RestClient(base_url=server.url, api_key=server.key)
        assert rest.get_server_capabilities().result(timeout=20).supported_models
        with pytest.raises(RuntimeError, match="JWT"):
            rest.whoami().result(timeout=20)


# ------------------------------------------------------------------------------------------- command


def test_log_in_who_am_i_and_log_out(tinker_cli, monkeypatch):
    monkeypatch.setattr("tinker.cli.login.prompt_api_key", lambda: KEY)
    login = tinker_cli("auth", "login")
    assert "Logged in as user@localhost (local)" in login.output
    assert "Tinker accessible: yes" in tinker_cli("auth", "status").output
    assert "tml:organization:local" in tinker_cli("auth", "whoami").output
    logout = tinker_cli("auth", "logout")
    assert logout.exit_code == 0
    assert "Removed credential 'txlab'" in logout.output


def test_a_wrong_key_does_not_log_in(tinker_cli, monkeypatch):
    monkeypatch.setattr("tinker.cli.login.prompt_api_key", lambda: "tml-wrong")
    login = tinker_cli("auth", "login")
    assert login.exit_code != 0
    assert "wrong or missing API key" in f"{login.output}{login.exception!r}{login.exception.__dict__}"
