"""Where steps end: delimiters as an automaton over the bytes of the vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from glimprouter import _C

__all__ = ["StepBoundary", "token_bytes"]


class StepBoundary(_C.StepBoundary):
    r"""Says of every token whether a step ends with it.

    Real tokenizers hide ``"\n\n"`` inside merged tokens (``".\n\n"``), split it over two, or run on
    (``"\n\n\n"``): the automaton works on bytes. A run of delimiters makes one boundary, never an
    empty step; text behind a delimiter inside the same token stays with the step that it ends.

    Attributes:
        vocab_size: Number of ids.
        delimiters: The delimiter strings.
        eos_ids: Ids that end a sequence; think_start_ids, think_end_ids likewise.
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
    ) -> None:
        r"""Builds the automaton from the bytes of each token.

        Args:
            token_bytes: ``[vocab_size]``; None for special tokens, which interrupt a delimiter.
            delimiters: Non-empty strings, at most 126 bytes (UTF-8) together.
            think_start_ids: Ids that open thinking; never a step's first token.
            think_end_ids: Ids that end thinking.
            eos_ids: Ids that end the sequence.
            close_ids: Ids of ``"\n</think>\n\n"``, appended when thinking is closed by force.

        Raises:
            TypeError: A token that is neither bytes nor None.
            ValueError: No delimiter, an id outside the vocabulary, or a vocabulary that cannot
                write any delimiter.
        """
        names = (delimiters,) if isinstance(delimiters, str) else tuple(delimiters)
        markers = [list(ids) for ids in (think_start_ids, think_end_ids, eos_ids, close_ids)]
        super().__init__(token_bytes, [name.encode() for name in names], *markers)
        self.delimiters = names
        self._arguments = (tuple(token_bytes), names, *map(tuple, markers))

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
    ) -> StepBoundary:
        r"""The boundary for a Hugging Face tokenizer (byte-level BPE or SentencePiece style).

        Args:
            tokenizer: A ``transformers`` tokenizer with a fast backend.
            delimiters: What separates steps (the paper: double newlines).
            think_start: The token that opens thinking; None when the model has none.
            think_end: The token that ends it; None when the model has none (thinking then ends by
                end of sequence, budget or repetition only).
            eos_token_ids: Ids that end a sequence; None for the tokenizer's own. Models often name
                several in their generation config: pass those.

        Raises:
            ValueError: ``think_start`` or ``think_end`` is not one token, or no token sequence can
                write a delimiter.
        """
        start_ids = [] if think_start is None else [_single_id(tokenizer, think_start)]
        end_ids = [] if think_end is None else [_single_id(tokenizer, think_end)]
        known = token_bytes(tokenizer)
        close_ids = [] if think_end is None else _close_ids(tokenizer, think_end, known)
        eos = tokenizer.eos_token_id if eos_token_ids is None else eos_token_ids
        eos_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        return cls(known, delimiters, start_ids, end_ids, eos_ids, close_ids)


def _single_id(tokenizer: Any, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(
            f"{text!r} is not one token of this tokenizer (it encodes to {len(ids)}); name the"
            " model's own markers by think_start= and think_end=, or None where it has none"
        )
    return int(ids[0])


def _close_ids(tokenizer: Any, think_end: str, known: Sequence[bytes | None]) -> list[int]:
    ids: list[int] = tokenizer.encode(f"\n{think_end}\n\n", add_special_tokens=False)
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
