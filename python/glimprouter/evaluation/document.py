"""A report as blocks, which renderers turn into a page. All text may be untrusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Block", "Document", "Figure", "Heading", "Paragraph", "Table"]


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of level 2, 3 or 4."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first column is text, the others are figures unless ``texts`` names them.

    Attributes:
        columns: Headings.
        rows: Cells, as many as columns.
        caption: What the figures are: unit, number, interval.
        texts: Further columns of text.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    texts: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture.

    Attributes:
        name: Of its file, where it has one.
        svg: The picture.
        caption: What it shows.
    """

    name: str
    svg: str
    caption: str


Block: TypeAlias = Heading | Paragraph | Table | Figure


@dataclass
class Document:
    """A title and what is below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
