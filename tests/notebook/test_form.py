"""A form's fields as typed arguments."""

from __future__ import annotations

import pytest

from txlab.notebook.errors import TxlabError
from txlab.notebook.form import read_form
from txlab.notebook.views.playground_html import DEFAULTS


def test_what_is_left_out_is_as_the_form_says_at_first() -> None:
    form = read_form({"prompt": "hello"}, DEFAULTS)
    assert (form.prompt, form.sources) == ("hello", ())
    assert form.options() == {
        "chat": False,
        "max_tokens": 64,
        "temperature": 1.0,
        "top_k": -1,
        "top_p": 1.0,
        "seed": None,
        "stop": None,
    }


def test_everything_is_read() -> None:
    typed = {
        "layout": "chat",
        "top_k": "5",
        "seed": "7",
        "stop": "\\n,end",
        "temperature": "0.3",
        "sources": ["a", "b"],
    }
    form = read_form(typed, DEFAULTS)
    assert form.sources == ("a", "b")
    assert form.options() == {
        "chat": True,
        "max_tokens": 64,
        "temperature": 0.3,
        "top_k": 5,
        "top_p": 1.0,
        "seed": 7,
        "stop": ["\n", "end"],
    }


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("max_tokens", "", "Max tokens is '': expected a whole number"),
        ("seed", "1.5", "Seed is '1.5': expected a whole number"),
        ("temperature", "warm", "Temperature is 'warm': expected a number"),
    ],
)
def test_errors_name_the_field(field: str, text: str, said: str) -> None:
    with pytest.raises(TxlabError, match=said):
        read_form({field: text}, DEFAULTS).options()
