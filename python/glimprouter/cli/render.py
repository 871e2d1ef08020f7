"""What the commands put on a terminal: colours by writer, and text that cannot command it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from glimprouter import TraceStep

# Distinguishable with red-green colour blindness, legible on light and dark backgrounds.
WRITER_STYLE = {"small": "cyan", "large": "bold magenta"}
PLAIN_WIDTH = 100  # columns of tables where there is no terminal to ask
_JOINERS = "\u200c\u200d"  # part of ordinary text in several scripts


def _visible(character: str) -> str:
    if character.isprintable() or character in "\n\t" or character in _JOINERS:
        return character
    category = unicodedata.category(character)
    code = ord(character)
    if category == "Zs":
        return character
    if category == "Cs":
        return "\N{REPLACEMENT CHARACTER}"
    if code < 0x20:
        return chr(0x2400 + code)  # the control picture, for example ESC -> U+241B
    if code == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    return character.encode("unicode_escape").decode("ascii")


def neutralise(text: str) -> str:
    r"""Text in which no character can command a terminal.

    A model may write escape sequences, carriage returns or bidirectional overrides; printed as they
    are they could clear the screen, retitle the window or show another text than was written.
    Control characters but newline and tab become visible: control pictures below U+0020, ``\x9b``
    style escapes for C1 and for format characters. Works character by character, so a sequence that
    arrives in pieces is caught as well.
    """
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def one_line(text: str) -> str:
    """The text of a step on one line: outer white space dropped, inner newlines shown."""
    return neutralise(text).strip().replace("\n", "\N{SYMBOL FOR NEWLINE}").replace("\t", " ")


def make_console(*, plain: bool = False, no_color: bool = False, stderr: bool = False) -> Console:
    """A console for a command.

    Args:
        plain: No escape sequences at all, as where the output is no terminal.
        no_color: No colours (NO_COLOR in the environment has the same effect).
        stderr: Write there instead of to stdout.
    """
    console = Console(
        stderr=stderr,
        force_terminal=False if plain else None,
        no_color=True if no_color else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def write(console: Console, text: str, style: str = "") -> None:
    """Prints untrusted text as it stands: neutralised, no wrapping, no newline added."""
    segment = Segment(neutralise(text), Style.parse(style))
    console.print(Segments([segment]), end="", soft_wrap=True)


def format_entropy(entropy: float | None) -> str:
    """H in nats, or a dash where the route was not decided by a glimpse."""
    return "-" if entropy is None else f"{entropy:.3f}"


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
    line.append(f"  {1e3 * step.seconds:>7.1f}  ")
    line.append(one_line(step.text), style)
    return line


def make_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table whose first column is text and whose others are figures."""
    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
