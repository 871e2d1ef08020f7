"""What the router says of one row of one call, and what of it a sequence remembers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Signals:
    """The router's outputs for one row of one call, as Python values."""

    token: int
    route: int
    phase: int
    end_reason: int
    forced: int
    entropy: float
    room: int
    logprob: float = math.nan


@dataclass(slots=True)
class TokenStatistics:
    """Entropy and log-probability of generated tokens, where a policy reads them.

    Both lists may be shorter than the sequence: nothing is known of the tokens behind their ends,
    and NaN stands for those before, of which nothing is known either.

    Attributes:
        entropies: Nats, of the distributions that the tokens were drawn from, at temperature 1.
        logprobs: Of the tokens, at temperature 1.
    """

    entropies: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TokenStatistics:
        """Of what ``dataclasses.asdict`` gave."""
        return cls(**state)

    def copy(self) -> TokenStatistics:
        """The same, on its own."""
        return TokenStatistics(list(self.entropies), list(self.logprobs))

    def note(self, place: int, signals: Signals) -> None:
        """A token was written.

        Args:
            place: Its index among the generated tokens.
            signals: What the router said of it.
        """
        if math.isnan(signals.logprob):
            return
        for values, value in (
            (self.entropies, signals.entropy),
            (self.logprobs, signals.logprob),
        ):
            del values[place:]
            values += [math.nan] * (place - len(values))
            values.append(value)

    def cut(self, kept: int) -> None:
        """Forgets the tokens behind the first so many."""
        del self.entropies[kept:], self.logprobs[kept:]

    def between(self, start: int, end: int) -> tuple[Sequence[float], Sequence[float]]:
        """Entropies and log-probabilities of a part of the tokens."""
        missing = [math.nan] * (end - max(start, len(self.logprobs)))
        return self.entropies[start:end] + missing, self.logprobs[start:end] + missing
