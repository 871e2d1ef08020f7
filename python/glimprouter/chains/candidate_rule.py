"""What chooses among drafts of one step, and what comes of a problem that is written so."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from glimprouter.policies import Aside, WrittenStep

if TYPE_CHECKING:
    from glimprouter.hf import Result, TokenCounts

__all__ = ["CandidateResult", "CandidateRule", "Choice"]


class Choice(NamedTuple):
    """What a rule says of the drafts of a step.

    Attributes:
        kept: Index of the draft that stays; None for a step of the large model.
        scores: What it thinks of each draft, and of the large model's step behind them if that is
            among what it has compared.
    """

    kept: int | None
    scores: Sequence[float]


class CandidateRule(ABC):
    """Chooses among drafts of one step.

    Attributes:
        candidates: Drafts of the small model, each with random numbers of its own; the first one
            with those of the chain.
        aside: What the large model reads of each draft (:class:`glimprouter.policies.Aside`).
    """

    candidates: int = 1
    aside: Aside | None = None

    @abstractmethod
    def choose(self, drafts: Sequence[WrittenStep]) -> Choice | None:
        """One of the drafts; None: the large model writes the step, too (:meth:`settle`)."""

    def settle(self, drafts: Sequence[WrittenStep], large: WrittenStep) -> Choice:
        """One of the drafts, or the large model's step."""
        return Choice(None, ())

    def compared(self, choice: Choice) -> float:
        """The number that decided; NaN where there is none."""
        return math.nan


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """What came of a problem.

    Attributes:
        result: The chain of the steps that were kept. Its counts are those of this chain.
        choices: Of each step that had drafts, in order; the end of the thinking is one.
        dropped: What both models computed beside it, for steps that were not kept: by model.
        dropped_tokens: Tokens of these steps, by who wrote them.
        dropped_read: Among the small model's, those that the large one read for the rule.
        dropped_seconds: Of their passes.
        passes: Forward passes of each model in which the chain or any of its drafts was.
    """

    result: Result
    choices: list[Choice]
    dropped: dict[str, TokenCounts]
    dropped_tokens: dict[str, int]
    dropped_read: int
    dropped_seconds: float
    passes: dict[str, int]
