"""The table of the magics."""

from __future__ import annotations

import pytest

from txlab.notebook.errors import TxlabError
from txlab.notebook.magics import LabMagics
from txlab.notebook.manual import Entry, Manual


def test_every_magic_has_a_line_and_an_example_of_itself() -> None:
    manual = Manual.of(LabMagics)
    names = [entry.name for entry in manual.entries]
    assert names == [f"%{n}" for n in LabMagics.magics["line"]] + [f"%%{n}" for n in LabMagics.magics["cell"]]
    for entry in manual.entries:
        assert entry.summary.endswith(".")
        assert len(entry.summary) < 110
        assert entry.name in entry.example
        assert repr(manual).count(entry.summary) == 1
        assert entry.example in manual._repr_html_()


def test_a_page_is_the_help_of_one() -> None:
    manual = Manual.of(LabMagics)
    page = manual.page("%%txsample")
    assert page == manual.page("txsample")
    assert page.startswith("%txsample ")
    assert "--max-tokens" in page
    with pytest.raises(TxlabError, match=r"no magic 'txnone'. There are %txserve, "):
        manual.page("txnone")


def test_text_is_escaped() -> None:
    html = Manual((Entry("%a", "<b>", "%a <i>", ""),))._repr_html_()
    assert "&lt;b&gt;" in html
    assert "&lt;i&gt;" in html
