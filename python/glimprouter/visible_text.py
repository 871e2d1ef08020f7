"""Untrusted text made visible: no character of it can command a terminal or a browser."""

from __future__ import annotations

import unicodedata

__all__ = ["neutralise", "one_line"]

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
