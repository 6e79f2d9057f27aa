"""Texts by token: what was unlikely shows."""

from __future__ import annotations

import pytest

from tests.notebook.views.html import Page
from txlab.notebook.views.pieces import token_html


@pytest.mark.parametrize(("logprob", "level"), [(0.0, 0), (-0.2, 1), (-1.0, 2), (-2.0, 3), (-5.0, 4)])
def test_the_less_likely_the_stronger(logprob: float, level: int) -> None:
    (span,) = Page(token_html("<b>", logprob)).elements
    assert span.attributes["class"] == f"lp{level}"
    assert span.text == "<b>"
    assert f"{logprob:.2f}" in span.attributes["title"]
