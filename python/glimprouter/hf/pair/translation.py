"""Two tokenizers in one chain of thought: what one model writes, in the tokens of the other."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

from glimprouter.boundary import StepBoundary, token_bytes
from glimprouter.hf.pair.text import MODELS
from glimprouter.kv import TokenLedger, VocabularyMap

# Capitals, a contraction, digits, runs of white space, composed letters, three and four bytes.
_PROBE = "It's 12 naïve  ideas,\n\n數 🜁\tEND."
_BYTE_FALLBACK = re.compile("<0x[0-9A-Fa-f]{2}>")
# SentencePiece puts a space of its own in front of a text, but not behind a line break.
_ANCHORS = ("", "\n")
_ANCHOR_TOKENS = 3


class Translation:
    """The vocabularies of a pair whose tokenizers differ.

    Attributes:
        map: Which tokens are the same in both, by bytes or role.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        boundaries: Sequence[StepBoundary],
    ) -> None:
        """Maps the tokens of the small and the large model, in this order.

        Args:
            tokenizers: Tokenizers of both models.
            boundaries: Made from them: the markers of thinking and the ends of sequence.

        Raises:
            ValueError: The bytes of some tokens cannot be told, or not every text of one model can
                be written by the other.
        """
        self._tokenizers = list(tokenizers)
        self._bytes = [token_bytes(tokenizer) for tokenizer in tokenizers]
        for name, tokenizer, known in zip(MODELS, tokenizers, self._bytes, strict=True):
            _check_bytes(name, tokenizer, known)
        try:
            self.map = VocabularyMap(
                self._bytes,
                _roles(tokenizers, boundaries),
                [_secondary_ids(tokenizer) for tokenizer in tokenizers],
            )
        except ValueError as error:
            raise ValueError(
                f"the tokenizers of the pair cannot be mapped (0: small, 1: large): {error}"
            ) from error

    @property
    def large_tokenizer(self) -> Any:
        """Of the large model."""
        return self._tokenizers[1]

    def tokenize(self, model: int, span: bytes) -> list[int]:
        """A span in a model's own tokens: as its tokenizer does it, if that keeps every byte.

        Args:
            model: 0 small, 1 large.
            span: Bytes; they may begin or end within a character where a step was cut there.

        Raises:
            ValueError: The vocabulary cannot write the span.
        """
        try:
            text = span.decode()
        except UnicodeDecodeError:
            text = ""
        for anchor in _ANCHORS if text else ():
            ids = self._tokenizers[model].encode(anchor + text, add_special_tokens=False)
            for start in range(min(_ANCHOR_TOKENS, len(ids))):
                if self.map.writes(model, ids[start:], span):
                    return [int(token) for token in ids[start:]]
        segmented = self.map.segment(model, span)
        if segmented is None:
            raise ValueError(f"the {MODELS[model]} model's vocabulary cannot write {span!r}")
        return segmented

    def expressible(self, model: str, token: int) -> bool:
        """Whether the other model of the pair can be given a token that this one wrote."""
        source = MODELS.index(model)
        return self.map.expressible(source, 1 - source, token)

    def draft_image(self, token: int) -> int | None:
        """The large model's token for one of the small model, where each is the other's image."""
        image = self.map.image(0, 1, token)
        return image if image is not None and self.map.image(1, 0, image) == token else None

    def convert(self, ids: Sequence[int], source: int) -> list[int]:
        """Ids of one model (0 or 1) as ids of the other.

        Raises:
            ValueError: A special token without counterpart.
        """
        ledger = TokenLedger(self.map)
        ledger.append(source, list(ids))
        target = 1 - source
        ledger.resolve(target, [self.tokenize(target, s) for s in ledger.pending_spans(target)])
        return ledger.ids(target)

    def text(self, model: int, token: int, *, skip_special: bool = False) -> bytes:
        """What a token writes; special tokens write their name, or nothing."""
        known = self._bytes[model][token]
        if known is not None:
            return known
        name: str = self._tokenizers[model].convert_ids_to_tokens(token)
        return b"" if skip_special else name.encode()

    def decode(
        self,
        ids: Sequence[int],
        writers: Sequence[int],
        *,
        skip_special: bool = False,
        cut: int | None = None,
    ) -> str:
        """The text of ids, each of its writer's vocabulary, joined as bytes."""
        parts = [
            self.text(writer, token, skip_special=skip_special)
            for token, writer in zip(ids, writers, strict=True)
        ]
        if cut is None:
            return b"".join(parts).decode(errors="replace")
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        before = decoder.decode(b"".join(parts[:cut]))  # what is unfinished then, it keeps
        return before + b"".join(parts[cut:]).decode(errors="replace")

    def incremental(self) -> BytesDecoder:
        """A decoder for one sequence."""
        return BytesDecoder(self)


class BytesDecoder:
    """Turns tokens of two vocabularies into pieces of valid text, whoever wrote their bytes."""

    def __init__(self, translation: Translation) -> None:
        """Starts with nothing decoded."""
        self._translation = translation
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int, writer: int) -> str:
        """The text that is complete with this token, perhaps empty."""
        return self._decoder.decode(self._translation.text(writer, token))

    def drop_unfinished(self) -> None:
        """Forgets the bytes of a character that has begun."""
        self._decoder.reset()

    def flush(self) -> str:
        """What is left, with a replacement character for bytes that form none."""
        return self._decoder.decode(b"", final=True)


def same_vocabulary(small: Any, large: Any) -> bool:
    """Whether two tokenizers give every id to the same token."""
    return small is large or small.get_vocab() == large.get_vocab()


def _check_bytes(name: str, tokenizer: Any, known: Sequence[bytes | None]) -> None:
    """Checks what a tokenizer encodes against the bytes of its tokens."""
    ids = tokenizer.encode(_PROBE, add_special_tokens=False)
    written = b"".join(known[token] or b"" for token in ids)
    if written.removeprefix(b" ") != _PROBE.encode():
        raise ValueError(
            f"the tokenizers of the pair cannot be mapped: the tokens of the {name} model's"
            f" tokenizer do not write the text that it is given ({_PROBE!r} becomes {written!r});"
            " it must keep every byte, as byte-level BPE and SentencePiece with byte fallback do"
        )


def _secondary_ids(tokenizer: Any) -> list[int]:
    """Tokens that the tokenizer uses where it has no other with the same bytes."""
    fallback = [i for token, i in tokenizer.get_vocab().items() if _BYTE_FALLBACK.fullmatch(token)]
    return [*fallback, *tokenizer.added_tokens_decoder]


def _roles(tokenizers: Sequence[Any], boundaries: Sequence[StepBoundary]) -> list[list[int]]:
    """Markers of thinking, special tokens of the same name, and the ends of sequence."""
    small, large = boundaries
    roles = [
        list(pair)
        for ids in (
            (small.think_start_ids, large.think_start_ids),
            (small.think_end_ids, large.think_end_ids),
        )
        if len(ids[0]) == len(ids[1])  # else one of them spells it out, which both can read
        for pair in zip(*ids, strict=True)
    ]
    named = [
        {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        for tokenizer in tokenizers
    ]
    names = sorted(named[0].keys() & named[1].keys())
    roles += [[named[0][name], named[1][name]] for name in names]
    ends = [
        _own_end_first(tokenizer, boundary.eos_ids)
        for tokenizer, boundary in zip(tokenizers, boundaries, strict=True)
    ]
    if all(ends):
        # Whichever of its ends a model writes, the other has one for it.
        roles += [[token, ends[1][0]] for token in ends[0]]
        roles += [[ends[0][0], token] for token in ends[1]]
    return roles


def _own_end_first(tokenizer: Any, eos_ids: Sequence[int]) -> list[int]:
    return sorted(eos_ids, key=lambda token: (token != tokenizer.eos_token_id, token))
