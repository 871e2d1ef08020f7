"""A plain model of the token ledger: every written token is kept as text and read again each time.

Written from the rules: what a model wrote, or has an image of, is taken over token by token; the
rest waits as text, extended to whole characters; a truncation goes back to the last place where
tokens of both sides end together.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple


class Words(NamedTuple):
    """Some vocabularies: bytes of each token, None for special ones."""

    tokens: list[list[bytes | None]]
    roles: list[list[int]]
    secondary: list[list[int]]

    def text(self, model: int, token: int) -> bytes | None:
        """None for special tokens and tokens with a role."""
        if any(role[model] == token for role in self.roles):
            return None
        return self.tokens[model][token] or None

    def image(self, source: int, target: int, token: int) -> int | None:
        """By search, without any table."""
        if source == target:
            return token
        for role in self.roles:
            if role[source] == token:
                return role[target]
        if not (text := self.text(source, token)):
            return None
        same = [i for i in range(len(self.tokens[target])) if self.text(target, i) == text]
        return min(same, key=lambda i: (i in self.secondary[target], i), default=None)

    def expressible(self, model: int, token: int) -> bool:
        others = [m for m in range(len(self.tokens)) if m != model]
        return self.text(model, token) is not None or all(
            self.image(model, other, token) is not None for other in others
        )

    def segmentations(self, model: int, text: bytes) -> list[list[int]]:
        """All ways to write a text, without secondary duplicates of a token."""
        if not text:
            return [[]]
        return [
            [token, *rest]
            for token in self.beginnings(model, text)
            for rest in self.segmentations(model, text[len(self.text(model, token) or b"") :])
        ]

    def beginnings(self, model: int, text: bytes) -> list[int]:
        """Tokens that a text begins with, without secondary duplicates."""
        texts = [self.text(model, token) for token in range(len(self.tokens[model]))]
        return [
            token
            for token, own in enumerate(texts)
            if own and text.startswith(own) and self._first_choice(model, token, own)
        ]

    def _first_choice(self, model: int, token: int, text: bytes) -> bool:
        same = [i for i in range(len(self.tokens[model])) if self.text(model, i) == text]
        return token == min(same, key=lambda i: (i in self.secondary[model], i))

    def best(self, model: int, text: bytes) -> list[int] | None:
        """The fewest tokens, the longest first."""

        def key(ids: list[int]) -> tuple[int, list[int]]:
            return len(ids), [-len(self.tokens[model][i] or b"") for i in ids]

        return min(self.segmentations(model, text), key=key, default=None)


class Piece(NamedTuple):
    """Written tokens [begin, end), and the ids that stand for them."""

    begin: int
    end: int
    ids: tuple[int, ...]


@dataclass
class LedgerModel:
    """What TokenLedger must do."""

    words: Words
    written: list[tuple[int, int]] = field(default_factory=list)  # model, id
    pieces: list[list[Piece]] = field(default_factory=list)  # [models]
    retokenized: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.pieces:
            self.pieces = [[] for _ in self.words.tokens]
            self.retokenized = [0 for _ in self.words.tokens]

    def copy(self) -> LedgerModel:
        return LedgerModel(
            self.words, list(self.written), [list(p) for p in self.pieces], list(self.retokenized)
        )

    def ids(self, model: int) -> list[int]:
        return [token for piece in self.pieces[model] for token in piece.ids]

    def covered(self, model: int) -> int:
        return self.pieces[model][-1].end if self.pieces[model] else 0

    def exact(self, model: int, index: int) -> int | None:
        writer, token = self.written[index]
        return self.words.image(writer, model, token)

    def text(self, index: int) -> bytes | None:
        return self.words.text(*self.written[index])

    def append(self, model: int, ids: list[int]) -> None:
        self.written += [(model, token) for token in ids]
        for own in range(len(self.pieces)):
            self.take_over(own, len(self.written))

    def take_over(self, model: int, end: int) -> None:
        for index in range(self.covered(model), end):
            token = self.exact(model, index)
            if token is None:
                return
            self.pieces[model].append(Piece(index, index + 1, (token,)))

    def splits(self, index: int) -> bool:
        """Whether valid UTF-8 goes on across this place: the text decodes only when joined."""
        if not 0 < index < len(self.written):
            return False
        before = itertools.takewhile(bool, (self.text(i) for i in range(index - 1, -1, -1)))
        tail = b"".join(reversed([part or b"" for part in before]))[-3:]
        following = self.text(index)
        if not following or not 0x80 <= following[0] < 0xC0:
            return False
        heads = [i for i, byte in enumerate(tail) if not 0x80 <= byte < 0xC0]
        if not heads or tail[heads[-1]] < 0xC0:
            return False
        lead = tail[heads[-1]]
        length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        return len(tail) - heads[-1] < length

    def plan(self, model: int) -> list[tuple[int, int]]:
        """Spans by marking tokens one by one until nothing changes."""
        count, covered = len(self.written), self.covered(model)
        marked = {i for i in range(covered, count) if self.exact(model, i) is None}
        if not marked:
            return []
        changed = True
        while changed:
            more = {i for i in range(1, count) if self.splits(i) and {i, i - 1} & marked}
            grown = marked | more | {i - 1 for i in more}
            for piece in self.pieces[model]:
                inside = set(range(piece.begin, piece.end))
                if grown & inside:
                    grown |= inside
            changed, marked = grown != marked, grown
        starts = [i for i in sorted(marked) if i - 1 not in marked]
        ends = [i + 1 for i in sorted(marked) if i + 1 not in marked]
        return list(zip(starts, ends, strict=True))

    def spans(self, model: int) -> list[bytes]:
        return [
            b"".join(self.text(i) or b"" for i in range(begin, end))
            for begin, end in self.plan(model)
        ]

    def resolve(self, model: int, spans: list[list[int]]) -> int:
        planned = self.plan(model)
        before = self.ids(model)
        if planned:
            kept = [p for p in self.pieces[model] if p.end <= planned[0][0]]
            self.pieces[model] = kept
        unchanged = len(self.ids(model)) if planned else len(before)
        for (begin, end), ids in zip(planned, spans, strict=True):
            self.take_over(model, begin)
            self.pieces[model].append(Piece(begin, end, tuple(ids)))
            self.retokenized[model] += len(ids)
        self.take_over(model, len(self.written))
        return unchanged

    def truncate(self, size: int) -> list[tuple[int, int]]:
        """Ids kept as before, and ids of a piece that is cut in two."""
        cuts = []
        del self.written[size:]
        for model, pieces in enumerate(self.pieces):
            kept = [piece for piece in pieces if piece.end <= size]
            cut = [piece for piece in pieces if piece.begin < size < piece.end]
            self.pieces[model] = kept
            cuts.append((len(self.ids(model)), sum(len(piece.ids) for piece in cut)))
            self.take_over(model, size)
        return cuts
