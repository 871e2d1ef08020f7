"""Token ids as text, also while they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def decode(tokenizer: Any, ids: Sequence[int], *, skip_special: bool = False) -> str:
    """The text of some ids, with nothing tidied up."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
    )
    return text


class IncrementalDecoder:
    """Turns a growing list of ids into pieces of valid text.

    A character may be spread over several tokens, and a SentencePiece token may lose its leading
    space at the start of a text: so the ids since the last safe point are decoded together, and a
    piece is given out only when it does not end in an unfinished character.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Starts with nothing decoded."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # ids before this index are forgotten
        self._given = 0  # ids before this index have been given out

    def push(self, token: int) -> str:
        """The text that is complete with this token, perhaps empty."""
        self._ids.append(token)
        before = decode(self._tokenizer, self._ids[self._context : self._given])
        text = decode(self._tokenizer, self._ids[self._context :])
        # Four tokens are more than any character takes: then the bytes are simply not UTF-8.
        unfinished = text.endswith(_UNFINISHED) and len(self._ids) - self._given < 4
        if unfinished or len(text) <= len(before):
            return ""
        self._context, self._given = self._given, len(self._ids)
        return text[len(before) :]

    def flush(self) -> str:
        """What is left, with replacement characters for bytes that form none."""
        before = decode(self._tokenizer, self._ids[self._context : self._given])
        text = decode(self._tokenizer, self._ids[self._context :])
        self._context = self._given = len(self._ids)
        return text[len(before) :]
