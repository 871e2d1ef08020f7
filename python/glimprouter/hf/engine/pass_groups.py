"""Which sequences share a forward pass over pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from glimprouter.hf.attention.gathered import MANY_TOKENS
from glimprouter.hf.graphs.sizes import MOST_SEEN, MOST_TOKENS, seen_by_long
from glimprouter.hf.sequence.record import SequenceRecord

_MOST_TOKENS = 4096  # of one eager pass: bounds the memory of its activations
# So many replays are faster than one eager pass over all of their tokens, which Python launches.
_REPLAYS_FOR_ONE = 2


class Piece(NamedTuple):
    """What a pass computes of a sequence.

    Attributes:
        tokens: New ones.
        length: Of the sequence with them.
    """

    tokens: int
    length: int


def grouped(
    records: Sequence[SequenceRecord], pieces: Mapping[int, Piece], *, device: str, replays: bool
) -> Iterator[list[SequenceRecord]]:
    """Groups for one pass each.

    On a device those with long pieces, which are attended otherwise, run apart; what fits into a
    few replays of graphs is split so that it does.

    Args:
        records: Sequences, in order.
        pieces: By the index of the sequence.
        device: Where the pages are.
        replays: Whether passes are replayed as graphs.
    """
    if device == "cpu":
        yield from bounded(records, pieces)
        return
    if replays:
        fast = [r for r in records if seen_by_long(*pieces[r.index]) <= MOST_SEEN]
        if sum(pieces[r.index].tokens for r in fast) <= _REPLAYS_FOR_ONE * MOST_TOKENS:
            yield from bounded(fast, pieces, MOST_TOKENS, MOST_SEEN)
            records = [r for r in records if seen_by_long(*pieces[r.index]) > MOST_SEEN]
    yield from bounded([r for r in records if pieces[r.index].tokens < MANY_TOKENS], pieces)
    yield from bounded([r for r in records if pieces[r.index].tokens >= MANY_TOKENS], pieces)


def bounded(
    records: Sequence[SequenceRecord],
    pieces: Mapping[int, Piece],
    most_tokens: int | None = None,
    most_seen: int | None = None,
) -> Iterator[list[SequenceRecord]]:
    """Groups that keep to bounds, or of one sequence.

    Args:
        records: Sequences, in order.
        pieces: By the index of the sequence.
        most_tokens: New ones of a group; None for the most of an eager pass.
        most_seen: Keys that its long pieces see (:func:`seen_by_long`); None for any number.
    """
    most = _MOST_TOKENS if most_tokens is None else most_tokens
    group: list[SequenceRecord] = []
    tokens = seen = 0
    for record in records:
        piece = pieces[record.index]
        tokens += piece.tokens
        seen += seen_by_long(*piece)
        if group and (tokens > most or (most_seen is not None and seen > most_seen)):
            yield group
            group, tokens, seen = [], piece.tokens, seen_by_long(*piece)
        group.append(record)
    if group:
        yield group
