"""GlimpRouter's own rule: the entropy of the first token against a threshold."""

from __future__ import annotations

from typing import Literal

import numpy as np

from glimprouter.config import ModelName, RouterConfig
from glimprouter.policies.base import Glimpse, Policy


class EntropyThreshold(Policy):
    """The large model writes a step where ``H_init > tau`` (arXiv 2601.05110, section 3).

    ``H_init = -sum p ln p`` over the distribution of the first token. The published code compares
    by ``>=`` and renormalises the 20 largest probabilities first, an entropy that
    ``RouterConfig(entropy_top_k=20)`` gives. A router without a policy decides the same by itself.
    """

    def __init__(self, threshold: float, comparison: Literal[">", ">="] = ">") -> None:
        """The rule.

        Args:
            threshold: tau in nats, >= 0.
            comparison: ``">"`` as in the paper, or ``">="`` as in the published code.

        Raises:
            TypeError: No number.
            ValueError: Out of range, or another comparison.
        """
        RouterConfig(threshold=threshold, comparison=comparison)  # the same checks
        self.threshold = threshold
        self.comparison = comparison
        self._compared = float(np.float32(threshold))  # as the router does

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the entropy."""
        above = glimpse.entropy > self._compared
        if self.comparison == ">=":
            above = glimpse.entropy >= self._compared
        return "large" if above else "small"
