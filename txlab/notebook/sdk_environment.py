"""The variables that lead the Tinker SDK to the lab, and what becomes of them when it stops.

While a lab runs, ``TINKER_BASE_URL`` and ``TINKER_API_KEY`` are the lab's, and no proxy stands between a client and it.
Afterwards an address that the user had is there again. Where there was none, the SDK would turn to the hosted service;
so an address that no client can use takes its place: it is refused before anything is sent, and its text says why.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

URL, KEY = "TINKER_BASE_URL", "TINKER_API_KEY"
# Brackets must hold an IPv6 address: this is no URL to any client.
NO_URL = "http://[no lab runs here: start one with %txserve]"
NO_KEY = "tml-no-lab-runs"  # the SDK looks at the key first, and would ask for one
NO_PROXY = ("NO_PROXY", "no_proxy")


class SdkEnvironment:
    """Points the SDK to the lab at ``url`` from ``point`` until ``release``."""

    def __init__(self, url: str, api_key: str):
        self._ours = {URL: url, KEY: api_key}
        self._host = urlsplit(url).hostname or ""
        self._before: dict[str, str | None] = {}
        self._proxy_before: dict[str, str | None] = {}
        self._proxy_ours: dict[str, str] = {}

    def point(self) -> None:
        """Set the variables."""
        self._before = {name: _own(name) for name in self._ours}
        os.environ.update(self._ours)
        self._proxy_before = {name: os.environ.get(name) for name in NO_PROXY}
        self._proxy_ours = {name: _with_host(name, self._host) for name in NO_PROXY}
        os.environ.update(self._proxy_ours)

    def release(self) -> str:
        """Put the variables back, but for what the user has changed meanwhile; says what the SDK means from now on."""
        for name in NO_PROXY:
            self._release_proxy(name)
        ours = {name for name, value in self._ours.items() if os.environ.get(name) == value}
        for name in ours:
            _put(name, self._before[name])
        if os.environ.get(URL):
            return f"{URL} is {os.environ[URL]}{' again' if URL in ours else ''}: ServiceClient() means that."
        if URL not in ours:
            return f"{URL} is not set any more: ServiceClient() means Tinker's hosted service."
        os.environ[URL] = NO_URL
        refused = "Until a lab runs, ServiceClient() raises at its first use, and nothing leaves this machine."
        if _has_credentials():
            return f"{refused} For the hosted service, with your own key: del os.environ[{URL!r}]"
        os.environ[KEY] = NO_KEY
        return refused

    def _release_proxy(self, name: str) -> None:
        before, now = self._proxy_before[name], os.environ.get(name)
        if now == self._proxy_ours[name]:
            _put(name, before)
        elif self._host in _hosts(now) and self._host not in _hosts(before):
            _put(name, ",".join(host for host in _hosts(now) if host != self._host) or None)


def proxy_exports(url: str) -> str:
    """A shell line that keeps proxies away from ``url``; each variable begins as the other where only one is set."""
    host = urlsplit(url).hostname
    upper, lower = NO_PROXY
    lists = [f'{name}="${{{name}:-${{{other}:-}}}},{host}"' for name, other in ((upper, lower), (lower, upper))]
    return f"export {' '.join(lists)}"  # without an error in a shell that refuses unset variables


def _with_host(name: str, host: str) -> str:
    """The variable's list of hosts with one more. Clients read either spelling and no further one: each is complete."""
    other = next(spelling for spelling in NO_PROXY if spelling != name)
    listed = os.environ.get(name) or os.environ.get(other) or ""
    if host in _hosts(listed) or "*" in _hosts(listed):
        return listed
    return f"{listed},{host}" if listed else host


def _hosts(value: str | None) -> list[str]:
    return [host.strip() for host in (value or "").split(",") if host.strip()]


def _own(name: str) -> str | None:
    """The user's own value; one that an earlier lab left counts as none."""
    value = os.environ.get(name)
    return None if value in ("", NO_URL, NO_KEY) else value


def _has_credentials() -> bool:
    """Whether the SDK would find a key, by the ways that its ``resolve_auth_provider`` tries."""
    stored = Path("~/.tinker/credentials.json").expanduser()
    return bool(os.environ.get(KEY) or os.environ.get("TINKER_CREDENTIAL_CMD")) or stored.exists()


def _put(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
