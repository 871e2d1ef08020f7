"""Sizes of passes that are captured: few enough for graphs, and which passes have none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from glimprouter.hf.attention.gathered import MANY_TOKENS
from glimprouter.kv import KvLayout, RaggedBatch

MOST_TOKENS = 256  # of a pass that is replayed
# Keys that all long pieces of a pass may see, summed over their tokens. The kernel over pages reads
# each of them without tensor cores: beyond this it takes longer than Python does to launch an eager
# pass, which gathers them for torch's own attention.
MOST_SEEN = 1 << 18
_FEWEST_PAGES = 16  # of the tables: shorter sequences have the same graph
_GROWTH = 4  # from one number of sequences to the next one, where rows have several tokens
_SCRATCH_BYTES = 1 << 29  # of attention's partial sums, which a graph keeps
# Of the context, for each of which there is a partial sum (csrc/cpu/attention_task.hpp).
_CHUNK_TOKENS, _CHUNK_PAGES = 128, 32


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


class Piece(NamedTuple):
    """What a pass computes of a sequence.

    Attributes:
        tokens: New ones.
        length: Of the sequence with them.
    """

    tokens: int
    length: int

    @property
    def seen_by_long(self) -> int:
        """Keys that the tokens of a long piece see, about; 0 for a short one."""
        return self.tokens * self.length if self.tokens >= MANY_TOKENS else 0


class PieceSums(NamedTuple):
    """Several pieces together.

    Attributes:
        tokens: New ones.
        seen: Keys that the tokens of long pieces see.
        longest: Tokens of the longest sequence.
    """

    tokens: int = 0
    seen: int = 0
    longest: int = 0

    def with_piece(self, piece: Piece) -> PieceSums:
        """One more."""
        return PieceSums(
            self.tokens + piece.tokens,
            self.seen + piece.seen_by_long,
            max(self.longest, piece.length),
        )


def padded_size(count: int, fewest: int = 1) -> int:
    """The next power of two, at least ``fewest``."""
    return max(fewest, 1 << (count - 1).bit_length())


@dataclass(frozen=True)
class SizeRule:
    """Which passes of a model have a size.

    Decode passes, of one token a sequence, always have one. Others are bounded by their tokens, by
    what their long pieces see, and by the memory of their attention.

    Attributes:
        page_size: Tokens of a page.
        max_sequences: The most of a pass.
        most_token_pages: Tokens times pages of a sequence, both padded.
        bounds_seen: Whether long pieces could be gathered instead.
    """

    page_size: int
    max_sequences: int
    most_token_pages: int
    bounds_seen: bool = True

    @classmethod
    def of(cls, layout: KvLayout, heads: int, max_sequences: int) -> SizeRule:
        """The rule of a model.

        Args:
            layout: Of its pages.
            heads: Query heads.
            max_sequences: The most of a pass.
        """
        partial = 4 * heads * max(layer.value_dim + 2 for layer in layout.layers)  # bytes
        chunk_pages = min(max(1, _CHUNK_TOKENS // layout.page_size), _CHUNK_PAGES)
        return cls(
            layout.page_size,
            max_sequences,
            _SCRATCH_BYTES // partial * chunk_pages,
            len(layout.latent) < layout.num_layers,
        )

    def takes(self, sums: PieceSums) -> bool:
        """Whether pieces, some of several tokens, have a size together."""
        if sums.tokens > MOST_TOKENS or (self.bounds_seen and sums.seen > MOST_SEEN):
            return False
        return padded_size(sums.tokens) * self._pages(sums) <= self.most_token_pages

    def size_of(self, batch: RaggedBatch, num_wanted: int) -> PassSize | None:
        """The size of a pass; None for one that has no graph.

        Args:
            batch: T tokens of B sequences.
            num_wanted: Tokens whose logits are wanted.
        """
        count, tokens = len(batch.sequences), len(batch.ids)
        if tokens == count == num_wanted:
            pages = padded_size(batch.block_table.shape[1], _FEWEST_PAGES)
            count = min(padded_size(count), self.max_sequences)
            return PassSize(count, count, pages, count, 1)
        if tokens > MOST_TOKENS:
            return None
        sums = PieceSums()
        for piece in zip(np.diff(batch.cu_seqlens).tolist(), batch.seq_lens.tolist(), strict=True):
            sums = sums.with_piece(Piece(*piece))
        if not self.takes(sums):
            return None
        tokens = padded_size(tokens)
        sequences = 2  # one more than there are has the padding
        while sequences < count + 1:
            sequences *= _GROWTH
        sequences = min(sequences, tokens)
        wanted = sequences if num_wanted <= sequences else tokens
        return PassSize(tokens, sequences, self._pages(sums), wanted, tokens)

    def _pages(self, sums: PieceSums) -> int:
        """Of the tables: as many as the longest sequence needs, or all of the padding."""
        most = max(sums.longest, padded_size(sums.tokens))
        return padded_size(-(-most // self.page_size), _FEWEST_PAGES)
