"""Links that need no API key."""

from __future__ import annotations

from urllib.parse import unquote

import pytest

from txlab.server.links import is_signed, sign

KEY = b"key"
PATH = "/api/v1/runs/a:train:0/odd name"


def parts(link: str) -> tuple[str, bytes]:
    path, _, query = link.partition("?")
    return unquote(path), query.encode()


def test_link_is_good_for_its_path_and_key_alone():
    path, query = parts(sign(PATH, KEY))
    assert path == PATH
    assert is_signed(path, query, KEY)
    assert not is_signed(path + "x", query, KEY)
    assert not is_signed(path, query, b"another key")


def test_link_ends():
    assert not is_signed(*parts(sign(PATH, KEY, seconds=-1)), KEY)


def test_a_later_end_is_not_signed():
    path, query = parts(sign(PATH, KEY, seconds=-1))
    assert not is_signed(path, query.replace(b"expires=", b"expires=9"), KEY)


@pytest.mark.parametrize("query", [b"", b"expires=&signature=", b"expires=1&signature=\xff", b"signature=%C3%A4"])
def test_nonsense_is_no_signature(query):
    assert not is_signed(PATH, query, KEY)
