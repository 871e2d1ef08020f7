"""Token ids as text, also while they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

MODELS = ("small", "large")
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def decode(tokenizer: Any, ids: Sequence[int], *, skip_special: bool = False) -> str:
    """The text of some ids, with nothing tidied up."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
    )
    return text


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
        before = "" if cut is None else decode(self._tokenizer, ids[:cut])
        if not before.endswith(_UNFINISHED):
            return decode(self._tokenizer, ids, skip_special=skip_special)
        parts = (
            decode(self._tokenizer, p, skip_special=skip_special) for p in (ids[:cut], ids[cut:])
        )
        return next(parts).removesuffix(_UNFINISHED) + next(parts)

    def incremental(self) -> IncrementalDecoder:
        """A decoder for one sequence."""
        return IncrementalDecoder(self._tokenizer)


class IncrementalDecoder:
    """Turns a growing list of ids into pieces of valid text.

    A character may be spread over several tokens, and a SentencePiece token may lose its leading
    space at the start of a text: so the ids since the last safe point are decoded together. One
    replacement character at the end may yet become a character and is held back; whatever stands
    before it stays.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Starts with nothing decoded."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # ids before this index are forgotten
        self._safe = 0  # no character crosses this index
        self._given = 0  # characters of the text since _context that have been given out

    def _text(self) -> str:
        return decode(self._tokenizer, self._ids[self._context :])

    def push(self, token: int, writer: int = 0) -> str:
        """The text that is complete with this token, perhaps empty."""
        self._ids.append(token)
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
        if self._text().endswith(_UNFINISHED):
            self._context = self._safe = len(self._ids)
            self._given = 0

    def flush(self) -> str:
        """What is left, with a replacement character for bytes that form none."""
        rest = self._text()[self._given :]
        self._context = self._safe = len(self._ids)
        self._given = 0
        return rest
