"""The baseline Random: a coin."""

from __future__ import annotations

import numpy as np

from glimprouter.config import ModelName, check_random_key
from glimprouter.policies.base import Glimpse, Policy
from glimprouter.policies.checks import check_probability


class RandomShare(Policy):
    """The large model writes a step with probability ``share`` (arXiv 2601.05110, baselines).

    The coin of a step follows from the seeds, the sequence's key and the index of the step, so it
    falls alike in any batch and after a rewind.
    """

    def __init__(self, share: float, seed: int = 0) -> None:
        """The rule.

        Args:
            share: In [0, 1].
            seed: Of the coins, in [0, 2^64), beside the seed of the sequence.

        Raises:
            TypeError: No numbers.
            ValueError: Out of range.
        """
        check_probability("share", share)
        check_random_key("seed", seed)
        self.share = share
        self.seed = seed

    def before(self, glimpse: Glimpse) -> ModelName:
        """By a coin."""
        key = np.random.SeedSequence((self.seed, glimpse.seed, glimpse.substream, glimpse.step))
        return "large" if np.random.default_rng(key).random() < self.share else "small"
