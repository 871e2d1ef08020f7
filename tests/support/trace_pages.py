"""The page of a trace, parsed as XML, and what it shows."""

from __future__ import annotations

from xml.etree import ElementTree

Element = ElementTree.Element


def parsed(page: str) -> Element:
    assert page.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(page)


def with_class(root: Element, tag: str, name: str) -> list[Element]:
    return [e for e in root.iter(tag) if name in e.get("class", "").split()]


def words(element: Element) -> str:
    return "".join(element.itertext())


def run_facts(root: Element) -> dict[str, str]:
    facts = next(root.iter("dl"))
    return dict(zip(map(words, facts.iter("dt")), map(words, facts.iter("dd")), strict=True))
