"""What the commands put on a terminal: colours by writer, and text that cannot command it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

# Also under these names here, where the commands look for them.
from glimprouter.visible_text import neutralise as neutralise
from glimprouter.visible_text import one_line as one_line

if TYPE_CHECKING:
    from glimprouter import TraceStep

# Distinguishable with red-green colour blindness, legible on light and dark backgrounds.
WRITER_STYLE = {"small": "cyan", "large": "bold magenta"}
SVG_COLUMNS = 100


def make_console(
    *, plain: bool = False, no_color: bool = False, stderr: bool = False, record: bool = False
) -> Console:
    """A console for a command.

    Args:
        plain: No escape sequences at all, as where the output is no terminal.
        no_color: No colours (NO_COLOR in the environment has the same effect).
        stderr: Write there instead of to stdout.
        record: Keep what is printed, for :func:`save_svg`.
    """
    return Console(
        stderr=stderr,
        force_terminal=False if plain else None,
        no_color=True if no_color else None,
        highlight=False,
        markup=False,
        emoji=False,
        record=record,
        width=SVG_COLUMNS if record else None,
    )


def save_svg(console: Console, path: Path, title: str) -> None:
    """Writes what a recording console printed as a picture that needs nothing from a network.

    Raises:
        OSError: The file cannot be written.
    """
    svg = console.export_svg(title=title, unique_id="glimprouter")
    # rich fetches a font; any monospaced one does.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    path.write_text(svg, encoding="utf-8")


def write(console: Console, text: str, style: str = "") -> None:
    """Prints untrusted text as it stands: neutralised, no wrapping, no newline added."""
    segment = Segment(neutralise(text), Style.parse(style))
    console.print(Segments([segment]), end="", soft_wrap=True)


def format_entropy(entropy: float | None) -> str:
    """H in nats, or a dash where the route was not decided by a glimpse."""
    return "-" if entropy is None else f"{entropy:.3f}"


def format_milliseconds(seconds: float) -> str:
    """A time in milliseconds, or a dash where none was recorded (exactly 0)."""
    return f"{1e3 * seconds:.1f}" if seconds else "-"


def step_header() -> Text:
    """The heading above :func:`step_line`."""
    return Text(
        f"{'step':>4}  {'writer':6}  {'H (nats)':>8}  {'tokens':>6}  {'ms':>7}  text", "bold"
    )


def step_line(step: TraceStep) -> Text:
    """One finished step: number, writer, entropy of the glimpse, tokens, milliseconds, text."""
    line = Text(f"{step.index:>4}  ")
    style = WRITER_STYLE[step.model]
    line.append(f"{step.model:6}", style)
    line.append(f"  {format_entropy(step.entropy):>8}  {step.num_tokens:>6}")
    line.append(f"  {format_milliseconds(step.seconds):>7}  ")
    line.append(one_line(step.text), style)
    return line


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Text]:
    """A table as lines without trailing white space: first column text, the others figures.

    Args:
        columns: Headings; a newline in one stacks it over two lines, at the bottom of the heading.
        rows: Cells, as many as columns.
    """
    headings = [column.split("\n") for column in columns]
    height = max(map(len, headings))
    head = [[([""] * (height - len(h)) + h)[level] for h in headings] for level in range(height)]
    widths = [max(len(line[i]) for line in (*head, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str], style: str) -> Text:
        first, *figures = zip(cells, widths, strict=True)
        text = "  ".join(
            [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in figures)]
        )
        return Text(text.rstrip(), style)

    return [*(line(cells, "bold") for cells in head), *(line(cells, "") for cells in rows)]
