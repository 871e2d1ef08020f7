"""A2R (arXiv 2509.22044) as an arm: small explorers, and a large synthesizer that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glimprouter.chains import Exploration, explore_and_synthesize_each, majority
from glimprouter.config import check_integer
from glimprouter.evaluation.chain_systems.base import ChainSystem, Finished, outcome_of
from glimprouter.tasks import Problem

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["A2R"]


class A2R(ChainSystem):
    """N small chains of each problem at once, then one large chain that has read their answers.

    The decision is the share of the explorers that agree on an answer. A synthesizer has to
    understand a message with other solutions in it; a model that has only seen bare problems, as
    those that are trained here, does not.
    """

    def __init__(self, explorers: int = 4) -> None:
        """The rule.

        Args:
            explorers: N, >= 1.

        Raises:
            TypeError: No integer.
            ValueError: Out of range.
        """
        check_integer("explorers", explorers, 1)
        self._explorers = explorers

    def rows(self, batch: int) -> int:
        """All explorers of a batch."""
        return batch * self._explorers

    def solve(
        self,
        model: RoutedModel,
        problems: Sequence[Problem],
        seeds: Sequence[int],
        finished: Finished,
    ) -> None:
        """By the synthesizer."""
        prompts = [problem.prompt for problem in problems]

        def tell(place: int, one: Exploration) -> None:
            outcome = outcome_of(
                one.synthesis,
                "large",
                {"small": one.solutions},
                decision=self._agreeing(one),
                more_passes={},
            )
            finished(place, outcome)

        explore_and_synthesize_each(model, prompts, seeds, explorers=self._explorers, finished=tell)

    def _agreeing(self, one: Exploration) -> float:
        vote = majority(self.task.vote_key(solution.answer) for solution in one.solutions)
        return vote.votes / self._explorers
