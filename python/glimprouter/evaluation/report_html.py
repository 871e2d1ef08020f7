"""A report as one page that needs nothing from a network."""

from __future__ import annotations

import base64
import html

from glimprouter.evaluation.document import Block, Document, Figure, Heading, Paragraph, Table
from glimprouter.visible_text import neutralise

__all__ = ["to_html"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
caption, figcaption { text-align: left; color: #555; font-size: .9rem; padding: .3rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; vertical-align: bottom; }
th:first-child, td:first-child, .text { text-align: left; }
td.text { white-space: pre-wrap; font-family: ui-monospace, monospace; font-size: .85rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; }
"""
# No scripts, no network: whatever a model wrote stays text.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(document: Document) -> str:
    """The page."""
    title = _text(document.title)
    body = "\n".join(_block(block) for block in document.blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return html.escape(neutralise(text))


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_text(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Figure):
        data = base64.b64encode(block.svg.encode("utf-8")).decode("ascii")
        caption = _text(block.caption)
        return (
            f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return _table(block)


def _table(table: Table) -> str:
    def cells(tag: str, row: list[str]) -> str:
        marked = (' class="text"' if at in table.texts else "" for at in range(len(row)))
        return "".join(
            f"<{tag}{mark}>{_text(cell)}</{tag}>" for cell, mark in zip(row, marked, strict=True)
        )

    rows = "\n".join(f"<tr>{cells('td', list(row))}</tr>" for row in table.rows)
    return (
        f"<table>\n<caption>{_text(table.caption)}</caption>\n"
        f"<thead><tr>{cells('th', list(table.columns))}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n"
        "</table>"
    )
