"""Token ids as text, also while they arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

MODELS = ("small", "large")
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def decode(tokenizer: Any, ids: Sequence[int], *, skip_special: bool = False) -> str:
    """The text of some ids, with nothing tidied up."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
    )
    return text


def byte_tokens(tokenizer: Any) -> dict[int, int]:
    """Tokens that stand for one byte each (byte fallback of SentencePiece), and which it is."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = tokenizer.convert_tokens_to_ids(names)
    known = {token: byte for byte, token in enumerate(ids) if isinstance(token, int)}
    return known if len(known) == len(names) else {}  # else it writes bytes in another way


def unfinished(ids: Sequence[int], byte_of: Mapping[int, int]) -> int:
    """How many tokens at the end stand for the bytes of a UTF-8 character that has only begun."""
    for count, token in enumerate(reversed(ids[-3:]), start=1):
        byte = byte_of.get(token, 0)
        if 0x80 <= byte < 0xC0:  # within a character
            continue
        needed = 2 if 0xC2 <= byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF5 else 0
        return count if byte >= 0xC2 and count < needed else 0
    return 0


class StreamDecoder(Protocol):
    """Turns tokens into text while they arrive."""

    def push(self, token: int, writer: int) -> str:
        """The text that is complete with this token; the writer is an index of ``MODELS``."""

    def drop_unfinished(self) -> None:
        """Forgets the bytes of a character that has begun: what comes next does not finish it."""

    def flush(self) -> str:
        """What is left, with a replacement character for bytes that form none."""


class TextReader(Protocol):
    """Reads generated ids, each of its writer's vocabulary.

    Attributes:
        large_tokenizer: Of the large model.
    """

    @property
    def large_tokenizer(self) -> Any:
        """The tokenizer."""

    def decode(
        self,
        ids: Sequence[int],
        writers: Sequence[int],
        *,
        skip_special: bool = False,
        cut: int | None = None,
    ) -> str:
        """The text of some ids, without a character that is unfinished at ``cut``."""

    def incremental(self) -> StreamDecoder:
        """A decoder for one sequence."""


class SharedTokenizer:
    """Reads the ids of a pair with one vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        """Reads by this tokenizer."""
        self._tokenizer = tokenizer
        self._byte_of = byte_tokens(tokenizer)

    @property
    def large_tokenizer(self) -> Any:
        """The one of both models."""
        return self._tokenizer

    def decode(
        self,
        ids: Sequence[int],
        writers: Sequence[int],
        *,
        skip_special: bool = False,
        cut: int | None = None,
    ) -> str:
        """The text of some ids, whoever wrote them."""
        ids = list(ids)
        if cut is not None and (count := unfinished(ids[:cut], self._byte_of)):
            del ids[cut - count : cut]
            cut = None
        before = "" if cut is None else decode(self._tokenizer, ids[:cut])
        if not before.endswith(_UNFINISHED):
            return decode(self._tokenizer, ids, skip_special=skip_special)
        parts = (
            decode(self._tokenizer, p, skip_special=skip_special) for p in (ids[:cut], ids[cut:])
        )
        return next(parts).removesuffix(_UNFINISHED) + next(parts)

    def incremental(self) -> IncrementalDecoder:
        """A decoder for one sequence."""
        return IncrementalDecoder(self._tokenizer, self._byte_of)


class IncrementalDecoder:
    """Turns a growing list of ids into pieces of valid text.

    A character may be spread over several tokens, and a SentencePiece token may lose its leading
    space at the start of a text: so the ids since the last safe point are decoded together. One
    replacement character at the end may yet become a character and is held back; whatever stands
    before it stays. Tokens of single bytes are held back until their character is whole: decoded in
    between, all of their run would be replacement characters.
    """

    def __init__(self, tokenizer: Any, byte_of: Mapping[int, int] | None = None) -> None:
        """Starts with nothing decoded.

        Args:
            tokenizer: Of transformers.
            byte_of: What comes of :func:`byte_tokens`; None asks the tokenizer.
        """
        self._tokenizer = tokenizer
        self._byte_of = byte_tokens(tokenizer) if byte_of is None else byte_of
        self._ids: list[int] = []
        self._context = 0  # ids before this index are forgotten
        self._safe = 0  # no character crosses this index
        self._given = 0  # characters of the text since _context that have been given out

    def _text(self) -> str:
        return decode(self._tokenizer, self._ids[self._context :])

    def push(self, token: int, writer: int = 0) -> str:
        """The text that is complete with this token, perhaps empty."""
        self._ids.append(token)
        if self._unfinished():
            return ""
        text = self._text()
        complete = text.removesuffix(_UNFINISHED)
        piece = complete[self._given :]
        self._given = max(self._given, len(complete))
        if complete == text:
            self._context, self._safe = self._safe, len(self._ids)
            self._given = len(self._text())
        return piece

    def drop_unfinished(self) -> None:
        """Forgets the bytes of a character that has begun, if one has."""
        if count := self._unfinished():
            del self._ids[-count:]
        elif self._text().endswith(_UNFINISHED):
            self._context = self._safe = len(self._ids)
            self._given = 0

    def _unfinished(self) -> int:
        return unfinished(self._ids[self._context :], self._byte_of)

    def flush(self) -> str:
        """What is left, with a replacement character for bytes that form none."""
        rest = self._text()[self._given :]
        self._context = self._safe = len(self._ids)
        self._given = 0
        return rest
