"""What a rule is told of the tokens in front of a block, and the form of such a rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class TokenFeatures(NamedTuple):
    """The T tokens of a pass, in front of one block.

    FTP (arXiv 2412.11494) gives its router four scalars: position, attention score, rank of that
    score, and the sparsity that the block should have. How the source scales them, and over which
    queries it sums the attention, could not be checked; below is how it is done here. The entropy
    is a signal of this package.

    Attributes:
        block: Index of the block.
        position: Of each token in its sequence, int64 ``[T]``.
        attention: What each token received in the last block before this one that attended at all:
            the mean over heads and over the queries of this pass that see it, float64 ``[T]``; 0
            where there was none, as in front of the first block. None unless the rule reads it.
        rank: Of the attention among these tokens, 0 for the most and 1 for the least attended,
            float64 ``[T]``; 0 where nothing has attended. None unless the rule reads attention.
        share: Of tokens that the block should skip, in [0, 1].
        entropy: Of the distribution that the previous pass over this sequence came to, nats; None
            in the first pass, and unless the rule reads it.
    """

    block: int
    position: npt.NDArray[np.int64]
    attention: npt.NDArray[np.float64] | None
    rank: npt.NDArray[np.float64] | None
    share: float
    entropy: float | None

    def matrix(self) -> npt.NDArray[np.float64]:
        """Position, attention, rank and share as columns, ``[T, 4]``.

        Raises:
            ValueError: The attention was not read.
        """
        if self.attention is None or self.rank is None:
            raise ValueError("the attention was not read; give the rule reads_attention = True")
        share = np.full(len(self.position), self.share)
        return np.stack([self.position.astype(np.float64), self.attention, self.rank, share], 1)


class BlockScorer(ABC):
    """A rule that says which tokens may skip a block.

    Attributes:
        reads_attention: Whether it is told the attention; the model must attend "eager" then, which
            has the attention's weights.
        reads_entropy: Whether it is told the entropy.
    """

    reads_attention: bool = False
    reads_entropy: bool = False

    @abstractmethod
    def chances(self, features: TokenFeatures) -> npt.ArrayLike:
        """How likely each token may skip the block, ``[T]``, without NaN."""


def ranks(attention: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The rank of each, 0 for the largest and 1 for the smallest; of equals, the first is first."""
    order = np.argsort(-attention, kind="stable")
    places = np.empty(len(order), dtype=np.float64)
    places[order] = np.arange(len(order))
    return places / max(1, len(order) - 1)
