"""Checks families of transformers and writes the table of docs/families.md.

Usage: python tests/support/family_table.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from families import FAMILIES, REFUSED
from family_checks import checked

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
_COLUMNS = ("family", "engine", "generate", "routed", "batch", "calls")
_HEADS = ("family", "engine", "`generate`", "routed", "batch", "fork, rewind, save")


def rows_of_page() -> dict[str, str]:
    """The lines of the page's table, by family."""
    text = PAGE.read_text(encoding="utf-8")
    lines = text.split(BEGIN)[1].split(END)[0].splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}


def line_of(row: dict[str, str]) -> str:
    """One line of the table."""
    return "| " + " | ".join(row[column] for column in _COLUMNS) + " |"


def main(arguments: list[str]) -> int:
    """Checks all families; the number of lines that are not as the page has them."""
    transformers.logging.set_verbosity_error()
    lines = [f"| {' | '.join(_HEADS)} |", "|---|---|---|---|---|---|"]
    failures = 0
    for name in FAMILIES:
        if name not in CONFIG_MAPPING_NAMES:
            print(f"{name}: unknown to transformers {transformers.__version__}", flush=True)
            continue
        try:
            lines.append(line_of(checked(name)))
        except Exception as failure:
            if name not in REFUSED:
                failures += 1
            reason = REFUSED.get(name, f"**{type(failure).__name__}**")
            lines.append(f"| {name} | refused: {reason} | | | | |")
        print(lines[-1], flush=True)
    if arguments == ["--check"]:  # of the families that this version knows
        return failures + sum(
            rows_of_page().get(line.split("|")[1].strip()) != line for line in lines[2:]
        )
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    table = "\n".join(lines) + "\n"
    PAGE.write_text(head + BEGIN + table + END + rest.split(END)[1], encoding="utf-8")
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
