"""Sizes of passes that are captured: few enough for graphs, and which passes have none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glimprouter.hf.attention.gathered import MANY_TOKENS
from glimprouter.kv import RaggedBatch

MOST_TOKENS = 256  # of a pass that is replayed
# Keys that all long pieces of a pass may see, summed over their tokens. The kernel over pages reads
# each of them without tensor cores: beyond this it takes longer than Python does to launch an eager
# pass, which gathers them for torch's own attention.
MOST_SEEN = 1 << 18
_FEWEST_PAGES = 16  # of the tables: shorter sequences have the same graph
# Of tokens times pages: bounds the memory of attention's partial sums, which a graph keeps.
_MOST_TOKEN_PAGES = MOST_TOKENS * 512
_GROWTH = 4  # from one number of sequences to the next one, where rows have several tokens


class PassSize(NamedTuple):
    """What a captured pass has room for.

    Attributes:
        tokens: Of all sequences, padding included.
        sequences: That have them.
        pages: Of a sequence.
        wanted: Tokens whose logits are computed.
        most_tokens: Of one sequence; 1 in decode passes.
    """

    tokens: int
    sequences: int
    pages: int
    wanted: int
    most_tokens: int


def padded_size(count: int, fewest: int = 1) -> int:
    """The next power of two, at least ``fewest``."""
    return max(fewest, 1 << (count - 1).bit_length())


def seen_by_long(tokens: int, length: int) -> int:
    """Keys that the tokens of a long piece see, about; 0 for a short one.

    Args:
        tokens: New ones of a sequence.
        length: Of the sequence with them.
    """
    return tokens * length if tokens >= MANY_TOKENS else 0


def size_of(
    batch: RaggedBatch, num_wanted: int, page_size: int, max_sequences: int
) -> PassSize | None:
    """The size of a pass; None for one that has no graph.

    Args:
        batch: T tokens of B sequences.
        num_wanted: Tokens whose logits are wanted.
        page_size: Tokens of a page.
        max_sequences: The most of a pass.
    """
    count, tokens = len(batch.sequences), len(batch.ids)
    width = batch.block_table.shape[1]
    if tokens == count == num_wanted:
        count = min(padded_size(count), max_sequences)
        return PassSize(count, count, padded_size(width, _FEWEST_PAGES), count, 1)
    if tokens > MOST_TOKENS:
        return None
    pieces = zip(np.diff(batch.cu_seqlens).tolist(), batch.seq_lens.tolist(), strict=True)
    if sum(seen_by_long(*piece) for piece in pieces) > MOST_SEEN:
        return None
    tokens = padded_size(tokens)
    # One sequence more has the padding, on as many pages as it needs.
    sequences = 2
    while sequences < count + 1:
        sequences *= _GROWTH
    sequences = min(sequences, tokens)
    pages = padded_size(max(width, -(-tokens // page_size)), _FEWEST_PAGES)
    if tokens * pages > _MOST_TOKEN_PAGES:
        return None
    wanted = sequences if num_wanted <= sequences else tokens
    return PassSize(tokens, sequences, pages, wanted, tokens)
