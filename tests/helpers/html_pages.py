"""
Reads HTML pages strictly: every element is closed, and every attribute is quoted and known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from tests.helpers.http_clients import ask_wsgi

VOID = frozenset({"meta", "link", "input", "br"})
"""Elements without an end tag."""


HOSTILE_IDS = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "\u202egnirts lrt",
    "עברית",
    "x" * 200,
    "a&b=c/../?d#e%20 +;",
    "{{ 7 * 7 }}{% raw %}",
    "lone \ud800 surrogate",
    "</style></main><!-- ]]>",
)


@dataclass
class Element:
    """An element, with its texts and elements in order."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of its text, with single spaces."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            else:
                yield from child._texts()

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Return the elements inside of a name, with these attributes."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == tag and attributes.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    def one(self, tag: str, **attributes: str) -> Element:
        [found] = self.all(tag, **attributes)
        return found

    def tags(self) -> set[str]:
        """Return the names of all elements inside."""
        inside = [child for child in self.children if isinstance(child, Element)]
        return {each.tag for each in inside}.union(*(each.tags() for each in inside))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        assert len(element.attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> ends another element"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(rig: Any, path: str = "/", **request: Any) -> Element:
    """Return a page of the application of a rig."""
    reply = ask_wsgi(rig.telemetry.wsgi_app, path, **request)
    assert reply.status == 200, reply.text
    return read_html(reply.text)


def read_html(text: str) -> Element:
    """Return the page; its elements must be nested properly, and it must begin as HTML 5."""
    assert text.startswith("<!doctype html>\n")
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], "not all elements are closed"
    return reader.root.one("html")
