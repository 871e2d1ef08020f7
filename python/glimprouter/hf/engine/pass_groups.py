"""Which sequences share a forward pass over pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from glimprouter.hf.attention.gathered import MANY_TOKENS
from glimprouter.hf.graphs.sizes import Piece, PieceSums, SizeRule
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.kv import RaggedBatch

_MOST_TOKENS = 4096  # of one eager pass: bounds the memory of its activations
# So many replays are faster than one eager pass over all of their tokens, which Python launches.
_REPLAYS_FOR_ONE = 2


def grouped(
    records: Sequence[SequenceRecord],
    pieces: Mapping[int, Piece],
    *,
    device: str,
    replayed: SizeRule | None,
) -> Iterator[list[SequenceRecord]]:
    """Groups for one pass each.

    On a device those with long pieces, which are attended otherwise, run apart, unless few replays
    take all.

    Args:
        records: Sequences, in order.
        pieces: By the index of the sequence.
        device: Where the pages are.
        replayed: Which passes are replayed as graphs; None for none.
    """
    if device == "cpu" or all(piece.tokens == 1 for piece in pieces.values()):
        yield from bounded(records, pieces)
        return
    if replayed is not None:
        small = [r for r in records if replayed.takes(PieceSums().with_piece(pieces[r.index]))]
        groups = _replays(small, pieces, replayed)
        if len(groups) <= _REPLAYS_FOR_ONE:
            yield from groups
            taken = {record.index for record in small}
            records = [record for record in records if record.index not in taken]
    yield from bounded([r for r in records if pieces[r.index].tokens < MANY_TOKENS], pieces)
    yield from bounded([r for r in records if pieces[r.index].tokens >= MANY_TOKENS], pieces)


def bounded(
    records: Sequence[SequenceRecord], pieces: Mapping[int, Piece]
) -> Iterator[list[SequenceRecord]]:
    """Groups of as many tokens as an eager pass may have, or of one sequence.

    Args:
        records: Sequences, in order.
        pieces: By the index of the sequence.
    """
    group: list[SequenceRecord] = []
    total = 0
    for record in records:
        tokens = pieces[record.index].tokens
        if group and total + tokens > _MOST_TOKENS:
            yield group
            group, total = [], 0
        group.append(record)
        total += tokens
    if group:
        yield group


def _replays(
    records: Sequence[SequenceRecord], pieces: Mapping[int, Piece], rule: SizeRule
) -> list[list[SequenceRecord]]:
    """Groups that have a size each, of sequences that have one alone."""
    groups: list[list[SequenceRecord]] = []
    sums = PieceSums()
    for record in records:
        more = sums.with_piece(pieces[record.index])
        if not groups or not rule.takes(more):
            groups.append([])
            more = PieceSums().with_piece(pieces[record.index])
        groups[-1].append(record)
        sums = more
    return groups


def wanted_rows(batch: RaggedBatch, wanted: Sequence[int]) -> npt.NDArray[np.int32]:
    """The tokens of a batch whose logits are wanted: the last ones of each sequence."""
    rows = batch.last_rows
    if all(count <= 1 for count in wanted):
        return rows
    parts = [np.arange(last - n + 1, last + 1) for last, n in zip(rows, wanted, strict=True)]
    return np.concatenate(parts).astype(rows.dtype)
