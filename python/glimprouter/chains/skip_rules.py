"""Rules for skipping blocks that need no training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glimprouter.chains.block_scorer import BlockScorer, TokenFeatures
from glimprouter.config import check_integer
from glimprouter.policies.checks import check_at_least


class OldestSkip(BlockScorer):
    """A block's share of a pass, the oldest tokens first, but the first of the text last of all.

    FTP's static router, as a review of it writes it down; the source searches the blocks' shares.
    A lone token of a later pass skips a block only where the share is 1.
    """

    def chances(self, features: TokenFeatures) -> npt.NDArray[np.float64]:
        """1 for those that skip, 0 for the others."""
        chances = np.zeros(len(features.position))
        order = np.arange(len(chances))
        if features.position[0] == 0:
            order = np.roll(order, -1)
        chances[order[: _count(features)]] = 1.0
        return chances


class LeastAttendedSkip(BlockScorer):
    """A block's share of a pass, the least attended first, by the rank alone.

    Nobody skips before any block has attended.
    """

    reads_attention = True

    def chances(self, features: TokenFeatures) -> npt.NDArray[np.float64]:
        """1 for those that skip, 0 for the others."""
        _, attention, rank, _ = features.matrix().T
        chances = np.zeros(len(rank))
        if attention.any():
            chances[np.argsort(-rank, kind="stable")[: _count(features)]] = 1.0
        return chances


class EntropySkips(BlockScorer):
    """The surer the model was of the token before, the fewer blocks for the next pass.

    ``most (high - H) / (high - low)`` blocks, rounded down and within [0, most], are skipped in
    their order by all tokens of a pass: all at an entropy H of ``low`` or less, none from ``high``
    on, and none in the first pass over a text. For passes of one token, so for writing.
    """

    reads_entropy = True

    def __init__(self, order: Sequence[int], *, low: float, high: float) -> None:
        """The rule.

        Args:
            order: Blocks that may be skipped, the least important first (:meth:`BlockRecord.order`
                has such an order); their number is ``most``.
            low: Nats, >= 0: the entropy at or below which all of them are.
            high: Nats, above ``low``: the entropy from which on none is.

        Raises:
            TypeError: A block that is no integer, or a bound that is no number.
            ValueError: Blocks that repeat or are negative, or bounds that do not ascend.
        """
        for block in order:
            check_integer("order", block, 0)
        if len(set(order)) != len(order):
            raise ValueError(f"order names a block twice: {list(order)}")
        check_at_least("low", low, 0)
        check_at_least("high", high, 0)
        if not (low < high and math.isfinite(high)):
            raise ValueError(f"high must be finite and above low, got {low!r} and {high!r}")
        self.order = [int(block) for block in order]
        self.low, self.high = low, high

    def skipped(self, entropy: float | None) -> list[int]:
        """The blocks that are skipped at an entropy, in nats."""
        if entropy is None:
            return []
        ease = min(1.0, max(0.0, (self.high - entropy) / (self.high - self.low)))
        return self.order[: math.floor(ease * len(self.order) + 1e-9)]

    def chances(self, features: TokenFeatures) -> npt.NDArray[np.float64]:
        """1 in front of a block that is skipped, else 0."""
        skips = features.block in self.skipped(features.entropy)
        return np.full(len(features.position), float(skips))


def _count(features: TokenFeatures) -> int:
    """Tokens of a pass that are to skip the block."""
    return math.floor(features.share * len(features.position) + 1e-9)
