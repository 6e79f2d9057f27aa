"""The running lab that a terminal means: ``txlab key`` prints its key."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from txlab.notebook.errors import TxlabError
from txlab.proxy import Announced, running_labs


def find_lab(url: str | None = None, port: int | None = None) -> Announced:
    """The lab at ``url`` or ``port``; else the one that ``$TINKER_BASE_URL`` names; else the newest.

    Raises TxlabError where there is none, or its key could not be kept in a file.
    """
    labs = running_labs()
    if not labs:
        raise TxlabError("No lab of yours runs on this machine. Start one: %txserve in a notebook, or txlab serve.")
    lab = _asked_for(labs, url, port) if url or port else _meant(labs)
    if lab.api_key is None:
        raise TxlabError(f"The key of the lab at {lab.url} is in no file, its log says why: lab.api_key in its kernel.")
    return lab


def _asked_for(labs: list[Announced], url: str | None, port: int | None) -> Announced:
    for lab in labs:
        if (url is None or _place(lab.url) == _place(url)) and (port is None or urlsplit(lab.url).port == port):
            return lab
    asked = f"at {url}" if url else f"at port {port}"
    raise TxlabError(f"No lab of yours runs {asked}. Running: {', '.join(lab.url for lab in labs)}.")


def _meant(labs: list[Announced]) -> Announced:
    exported = os.environ.get("TINKER_BASE_URL")
    for lab in labs:
        if exported and _place(lab.url) == _place(exported):
            return lab
    if exported:  # another lab's key must not go to that address
        running = ", ".join(lab.url for lab in labs)
        raise TxlabError(
            f"No lab of yours runs at $TINKER_BASE_URL, {exported}. Running: {running}. Unset it, or choose with --url."
        )
    return labs[0]


def _place(url: str) -> tuple[str | None, int | None]:
    """Host and port, however they are written."""
    try:
        address = urlsplit(url if "://" in url else f"http://{url}")
        return "127.0.0.1" if address.hostname == "localhost" else address.hostname, address.port
    except ValueError:
        return None, None
