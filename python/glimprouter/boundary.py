"""Where steps end: delimiters as an automaton over the bytes of the vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from glimprouter import _C

__all__ = ["SequenceStart", "StepBoundary", "token_bytes"]


class SequenceStart(NamedTuple):
    """Where a sequence stands behind its prompt (:meth:`StepBoundary.read_prompt`).

    Attributes:
        answering: Its thinking is closed: the first token is one of the answer.
        in_step: A step of the thinking has begun, which nobody decided: the small model writes on.
        automaton: State of the boundary within such a step; else 0.
    """

    answering: bool = False
    in_step: bool = False
    automaton: int = 0


class StepBoundary(_C.StepBoundary):
    r"""Says of every token whether a step ends with it.

    Real tokenizers hide ``"\n\n"`` inside merged tokens (``".\n\n"``), split it over two, or run on
    (``"\n\n\n"``): the automaton works on bytes. A run of delimiters makes one boundary, never an
    empty step; text behind a delimiter inside the same token stays with the step that it ends.

    Attributes:
        vocab_size: Number of ids.
        delimiters: The delimiter strings.
        eos_ids: Ids that end a sequence; think_start_ids, think_end_ids likewise.
        think_start_markers: Markers of several tokens that open thinking, as lists of ids;
            think_end_markers likewise.
        close_ids: Ids appended when thinking is closed by force.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        delimiters: Sequence[str] = ("\n\n",),
        think_start_ids: Iterable[int] = (),
        think_end_ids: Iterable[int] = (),
        eos_ids: Iterable[int] = (),
        close_ids: Iterable[int] = (),
        think_start_markers: Iterable[Sequence[int]] = (),
        think_end_markers: Iterable[Sequence[int]] = (),
    ) -> None:
        r"""Builds the automaton from the bytes of each token.

        Args:
            token_bytes: ``[vocab_size]``; None for special tokens, which interrupt a delimiter.
            delimiters: Non-empty strings; with the markers of several tokens at most 126 bytes
                (UTF-8) and special tokens together.
            think_start_ids: Ids that open thinking; never a step's first token.
            think_end_ids: Ids that end thinking.
            eos_ids: Ids that end the sequence.
            close_ids: Ids of ``"\n</think>\n\n"``, appended when thinking is closed by force.
            think_start_markers: Markers of several tokens, as ids. Special tokens are recognized as
                such, the others by their bytes, however these are split into tokens.
            think_end_markers: Likewise.

        Raises:
            TypeError: A token that is neither bytes nor None.
            ValueError: No delimiter, an id outside the vocabulary, or a vocabulary that cannot
                write any delimiter.
        """
        names = (delimiters,) if isinstance(delimiters, str) else tuple(delimiters)
        starts, ends, eos, close = (
            list(ids) for ids in (think_start_ids, think_end_ids, eos_ids, close_ids)
        )
        opening, closing = (
            [list(ids) for ids in markers] for markers in (think_start_markers, think_end_markers)
        )
        delimiter_bytes = [name.encode() for name in names]
        super().__init__(token_bytes, delimiter_bytes, starts, ends, eos, close, opening, closing)
        self.delimiters = names
        self._arguments = (tuple(token_bytes), names, starts, ends, eos, close, opening, closing)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are built anew, from the same bytes."""
        return type(self), self._arguments

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        delimiters: Sequence[str] = ("\n\n",),
        think_start: str | None = "<think>",
        think_end: str | None = "</think>",
        eos_token_ids: int | Sequence[int] | None = None,
        think_close: str | None = None,
    ) -> StepBoundary:
        r"""The boundary for a Hugging Face tokenizer (byte-level BPE or SentencePiece style).

        Args:
            tokenizer: A ``transformers`` tokenizer with a fast backend.
            delimiters: What separates steps (the paper: double newlines).
            think_start: The marker that opens thinking; None when the model has none.
            think_end: The marker that ends it; None when the model has none (thinking then ends by
                end of sequence, budget or repetition only).
            eos_token_ids: Ids that end a sequence; None for the tokenizer's own. Models often name
                several in their generation config: pass those.
            think_close: What is written when thinking is closed by force; None for ``think_end`` on
                a line of its own.

        Raises:
            ValueError: A marker that the tokenizer cannot write, or no token sequence can write a
                delimiter.
        """
        known = token_bytes(tokenizer)
        starts = _marker_ids(tokenizer, think_start, known, "think_start")
        ends = _marker_ids(tokenizer, think_end, known, "think_end")
        close_ids: list[int] = []
        if think_end is not None:
            close = f"\n{think_end}\n\n" if think_close is None else think_close
            close_ids = _text_ids(tokenizer, close, known)
        eos = tokenizer.eos_token_id if eos_token_ids is None else eos_token_ids
        eos_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        return cls(
            known,
            delimiters,
            [ids[0] for ids in starts if len(ids) == 1],
            [ids[0] for ids in ends if len(ids) == 1],
            eos_ids,
            close_ids,
            [ids for ids in starts if len(ids) > 1],
            [ids for ids in ends if len(ids) > 1],
        )

    def read_prompt(self, ids: Sequence[int]) -> SequenceStart:
        """Where a sequence stands behind a prompt.

        What counts is what follows the last special token that is no marker: earlier turns have
        markers of their own, and so may the text of a user. Where a prompt has no special tokens,
        pass what its template appends for the answer.

        Args:
            ids: The prompt, or its end.

        Raises:
            ValueError: An id outside the vocabulary.
        """
        return SequenceStart(*self._read_prompt(list(ids)))


def _marker_ids(
    tokenizer: Any, text: str | None, known: Sequence[bytes | None], name: str
) -> list[list[int]]:
    """No marker or one, as ids."""
    if text is None:
        return []
    ids = _text_ids(tokenizer, text, known) if text else []
    written = tokenizer.decode(ids, clean_up_tokenization_spaces=False) if ids else ""
    if not ids or written.strip() != text.strip():
        raise ValueError(
            f"{name}: {text!r} cannot be written by this tokenizer (it reads back as {written!r});"
            " name the model's own markers, or None where it has none"
        )
    return [ids]


def _text_ids(tokenizer: Any, text: str, known: Sequence[bytes | None]) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    # SentencePiece begins each piece of text with a space of its own; this text has none.
    return [token for token in ids if known[token] != b" "]


def _byte_level_alphabet() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE (GPT-2) uses for bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return alphabet


def _uses_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    description = json.loads(backend.to_str())
    # A decoder or pre-tokenizer may be a sequence: look for the name anywhere inside.
    parts = json.dumps([description.get("decoder"), description.get("pre_tokenizer")])
    return '"ByteLevel"' in parts


def _sentencepiece_bytes(token: str) -> bytes:
    if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """The bytes that each id of a Hugging Face tokenizer writes; None for special tokens.

    Args:
        tokenizer: A ``transformers`` tokenizer. Ids that have no token count as special.

    Returns:
        ``[number of ids]``, up to the largest id.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    result: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    byte_level = _uses_byte_level(tokenizer)
    alphabet = _byte_level_alphabet() if byte_level else {}
    added = tokenizer.added_tokens_decoder
    for token, index in vocabulary.items():
        if index in added:
            result[index] = None if added[index].special else added[index].content.encode()
        elif byte_level and all(character in alphabet for character in token):
            result[index] = bytes(alphabet[character] for character in token)
        else:
            result[index] = token.encode() if byte_level else _sentencepiece_bytes(token)
    return result
