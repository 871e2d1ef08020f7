"""A report as Markdown; pictures are files beside it."""

from __future__ import annotations

import re

from glimprouter.evaluation.document import Block, Document, Figure, Heading, Paragraph, Table
from glimprouter.visible_text import one_line

__all__ = ["to_markdown"]


def to_markdown(document: Document, figures: str) -> str:
    """The text.

    Args:
        document: The report.
        figures: Path of the pictures' folder, relative to the text.
    """
    parts = [f"# {_text(document.title)}", *(_block(block, figures) for block in document.blocks)]
    return "\n\n".join(parts) + "\n"


def _text(text: str) -> str:
    """Untrusted text: nothing in it is markup, of Markdown or HTML."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", escaped)


def _block(block: Block, figures: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_text(block.text)}"
    if isinstance(block, Paragraph):
        return _text(block.text)
    if isinstance(block, Figure):
        caption = _text(block.caption)
        return f"![{caption}]({figures}/{block.name}.svg)\n\n{caption}"
    return _table(block)


def _table(table: Table) -> str:
    left = {0, *table.texts}
    marks = [":---" if at in left else "---:" for at in range(len(table.columns))]
    rows = [list(map(_text, row)) for row in (table.columns, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:])]
    return f"{_text(table.caption)}\n\n" + "\n".join(lines)
