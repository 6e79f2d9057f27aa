"""What is kept of texts, and for how long."""

from __future__ import annotations

import gc

import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine.tools import tokens
from txlab.engine.prefixes import MIN_SHARED, Prefix, Prefixes, common
from txlab.lora.adapter import Adapter
from txlab.lora.state import LoraConfig
from txlab.models.attention import LayerCache

ONE = 2 * 4 * 64  # bytes of one prefix


def prefix(text: np.ndarray) -> Prefix:
    return Prefix(text, (LayerCache(jnp.zeros((1, 1, 1, 64)), jnp.zeros((1, 1, 64, 1))),))


def adapter() -> Adapter:
    return Adapter(LoraConfig(rank=1), {})


@pytest.mark.parametrize(
    ("one", "other", "expected"), [([1, 2, 3], [1, 2, 4], 2), ([1], [1, 2], 1), ([], [1], 0), ([5], [6], 0)]
)
def test_common(one, other, expected):
    assert common(np.array(one), np.array(other)) == expected


def test_the_longest_beginning_is_found():
    prefixes, text = Prefixes(10 * ONE), tokens(60)
    for length in (20, 40, 30):
        prefixes.add(None, prefix(np.concatenate((text[:length], tokens(5, length)))))
    found, shared = prefixes.find(None, text)
    assert (len(found.tokens), shared) == (45, 40)
    assert prefixes.find(None, np.concatenate((text[: MIN_SHARED - 1], tokens(30, 9)))) is None


def test_adapters_do_not_share():
    prefixes, (a, b), text = Prefixes(10 * ONE), (adapter(), adapter()), tokens(30)
    prefixes.add(a, prefix(text))
    assert prefixes.find(a, text) is not None
    assert prefixes.find(b, text) is None
    assert prefixes.find(None, text) is None


def test_what_is_continued_goes():
    prefixes, text = Prefixes(10 * ONE), tokens(60)
    prefixes.add(None, prefix(text[:30]))
    prefixes.add(None, prefix(text))
    assert prefixes.memory_bytes == ONE
    assert prefixes.holds(None, text[:30])


def test_the_least_recently_used_goes_first():
    prefixes, a, texts = Prefixes(2 * ONE), adapter(), [tokens(30, n) for n in range(3)]
    prefixes.add(None, prefix(texts[0]))
    prefixes.add(a, prefix(texts[1]))
    assert prefixes.find(None, texts[0]) is not None
    prefixes.add(a, prefix(texts[2]))
    assert prefixes.memory_bytes == 2 * ONE
    assert prefixes.find(a, texts[1]) is None
    assert prefixes.find(None, texts[0]) is not None


def test_what_is_larger_than_the_limit_is_not_kept():
    prefixes = Prefixes(ONE - 1)
    prefixes.add(None, prefix(tokens(30)))
    assert prefixes.memory_bytes == 0


def test_prefixes_go_with_their_adapter():
    prefixes, a = Prefixes(10 * ONE), adapter()
    prefixes.add(a, prefix(tokens(30)))
    del a
    gc.collect()
    assert prefixes.memory_bytes == 0
