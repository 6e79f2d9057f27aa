"""HTML as a reader's program sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "input", "link"}
LOADS = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")  # attributes that fetch or lead elsewhere


@dataclass
class Element:
    """A tag with its attributes, the data-target of it or of what it lies in, and the text of it and what it holds."""

    tag: str
    attributes: dict[str, str]
    target: str = ""
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Well-formed HTML: every element is closed, in order; AssertionError otherwise."""

    elements: list[Element] = field(default_factory=list)  # in document order

    def __init__(self, html: str):
        HTMLParser.__init__(self)
        self.elements = []
        self._open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self._open, f"{self._open[-1].tag} is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} comes twice"
        element = self._add(tag, attrs)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> Element:
        attributes = {name: value or "" for name, value in attrs}
        around = self._open[-1].target if self._open else ""
        self.elements.append(Element(tag, attributes, attributes.get("data-target", around)))
        return self.elements[-1]

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"{tag} was never opened"
        assert self._open[-1].tag == tag, f"{tag} ends within {self._open[-1].tag}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str, css: str | None = None) -> list[Element]:
        """Elements of a tag, with a class."""
        return [
            e for e in self.elements if e.tag == tag and (css is None or css in e.attributes.get("class", "").split())
        ]

    def assert_harmless(self) -> None:
        """Nothing runs, and nothing is fetched."""
        for element in self.elements:
            assert element.tag not in ("script", "iframe", "object", "embed", "link", "base"), element
            for name, value in element.attributes.items():
                assert not name.startswith("on"), element
                assert name not in LOADS, element
                assert "url(" not in value, element
        for style in self.all("style"):
            assert "url(" not in style.text
            assert "@import" not in style.text
