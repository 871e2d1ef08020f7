"""Policies that write down what they see, and the one that tells the forks of a step apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from glimprouter.config import ModelName
from glimprouter.policies import Glimpse, Policy
from glimprouter.router import OutputField

__all__ = ["BySubstream", "Recording", "signals_of"]

SIGNALS = ("entropy", "max_prob", "margin", "varentropy")


def signals_of(glimpse: Glimpse | None) -> dict[str, Any]:
    """The four numbers of a glimpse; None each where there was none."""
    if glimpse is None:
        return dict.fromkeys(SIGNALS)
    values = {name: float(getattr(glimpse, name)) for name in SIGNALS}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class Recording(Policy):
    """Decides as another policy and keeps the glimpses.

    Attributes:
        glimpses: By seed and random key of the sequence, then by step: the last one.
    """

    signals = OutputField.MAX_PROB | OutputField.MARGIN | OutputField.VARENTROPY

    def __init__(self, own: Policy) -> None:
        """Nothing is seen yet.

        Args:
            own: The rule that decides.
        """
        self._own = own
        self.glimpses: dict[tuple[int, int], dict[int, Glimpse]] = {}

    @property
    def name(self) -> str:
        """The rule's name."""
        return self._own.name

    def before(self, glimpse: Glimpse) -> ModelName:
        """As the rule decides."""
        writer = self._own.before(glimpse)
        self.glimpses.setdefault((glimpse.seed, glimpse.substream), {})[glimpse.step] = glimpse
        return writer


class BySubstream(Policy):
    """The small model writes everything but in forks with certain random keys."""

    signals = Recording.signals

    def __init__(self) -> None:
        """No forks yet; :meth:`give` names them."""
        self._writers: dict[tuple[int, int], ModelName] = {}
        self.glimpses: dict[tuple[int, int], dict[int, Glimpse]] = {}

    def give(self, writers: Mapping[tuple[int, int], ModelName]) -> None:
        """Says who writes all further steps of sequences, by seed and random key."""
        self._writers.update(writers)

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the random key."""
        key = (glimpse.seed, glimpse.substream)
        self.glimpses.setdefault(key, {})[glimpse.step] = glimpse
        return self._writers.get(key, "small")
