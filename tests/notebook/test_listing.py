"""Tables of things, which are found by their place or their name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest

from tests.notebook.views.html import Page
from txlab.notebook.errors import TxlabError
from txlab.notebook.listing import ROWS, Listed, Listing
from txlab.notebook.views.tables import Column

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@dataclass(frozen=True, repr=False)
class Ship(Listed):
    """What is listed here."""

    KIND: ClassVar[str] = "ship"
    COLUMNS: ClassVar[tuple[Column, ...]] = (Column("name"), Column("masts", "number"))

    name: str
    masts: int
    created: datetime = NOW

    def names(self) -> tuple[str, ...]:
        return self.name, f"{self.name}-{self.masts}"

    def cells(self) -> tuple[str, ...]:
        return self.name, str(self.masts)


FLEET = Listing(Ship, [Ship("ada", 3), Ship("bob", 2, NOW + timedelta(1)), Ship("bob", 1)])


def test_they_are_found_by_place_and_by_name() -> None:
    assert (len(FLEET), FLEET[0].name, FLEET[-1].masts) == (3, "ada", 1)
    assert FLEET["ada"] is FLEET[0]
    assert FLEET["bob-1"] is FLEET[2]
    assert FLEET["bob"] is FLEET[1], "the newest of that name"
    assert isinstance(FLEET[1:], Listing)
    assert [ship.masts for ship in FLEET[1:]] == [2, 1]


def test_what_is_not_there_is_said_with_what_is() -> None:
    with pytest.raises(TxlabError, match=r"no ship 'eve'\. There are: 'ada', 'bob', 'bob'\."):
        _ = FLEET["eve"]
    with pytest.raises(TxlabError, match=r"There are: none\."):
        _ = Listing(Ship, [])["eve"]


def test_they_are_a_table() -> None:
    assert repr(FLEET) == "name  masts\nada       3\nbob       2\nbob       1"
    page = Page(FLEET._repr_html_())
    assert page.elements[0].attributes["aria-label"] == "ships"
    assert [e.text for e in page.all("caption")] == ["3 ships"]
    assert [e.text for e in page.all("tr")] == ["namemasts", "ada3", "bob2", "bob1"]


def test_one_of_them_is_a_list_of_facts() -> None:
    assert repr(FLEET[0]) == "name   ada\nmasts  3"
    page = Page(FLEET[0]._repr_html_())
    assert page.elements[0].attributes["aria-label"] == "ship"
    assert [e.text for e in page.all("tr")] == ["nameada", "masts3"]


def test_none_are_said_to_be_none() -> None:
    assert repr(Listing(Ship, [])) == "no ships"
    assert [e.text for e in Page(Listing(Ship, [])._repr_html_()).all("div", "line")] == ["no ships"]


@pytest.mark.parametrize(("more", "said"), [(0, []), (1, ["… and 1 more"]), (2000, ["… and 2,000 more"])])
def test_long_tables_are_cut(more: int, said: list[str]) -> None:
    many = Listing(Ship, [Ship("ada", 3)] * (ROWS + more))
    page = Page(many._repr_html_())
    assert len(page.all("tr")) == ROWS + 1
    assert [e.text for e in page.all("div", "line")] == said
    assert repr(many).splitlines()[ROWS + 1 :] == said
