"""Systems that write greedily, one problem after another, with the large model's chain."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from glimprouter.evaluation.chain_systems.base import ChainSystem, Finished, prompt_ids
from glimprouter.evaluation.chain_systems.plain_chain import Budgets, budgets_of, check_thinking
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.tasks import Problem

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["OneByOne"]


class OneByOne(ChainSystem):
    """Such a system: it draws nothing, so seeds change nothing."""

    greedy = True
    one_at_a_time = True

    def check(self, model: RoutedModel) -> None:
        """Refuses thinking, and texts, without an end."""
        check_thinking(model)

    def solve(
        self,
        model: RoutedModel,
        problems: Sequence[Problem],
        seeds: Sequence[int],
        finished: Finished,
    ) -> None:
        """Each problem by itself, with the budgets that a run would give it."""
        prompts = prompt_ids(model, (problem.prompt for problem in problems), "large")
        every = zip(problems, prompts, budgets_of(model, problems), strict=True)
        for place, each in enumerate(every):
            finished(place, self.solve_one(model, *each))

    @abstractmethod
    def solve_one(
        self, model: RoutedModel, problem: Problem, prompt: Sequence[int], budgets: Budgets
    ) -> Outcome:
        """What came of one problem, as :meth:`solve` tells it.

        Args:
            model: The pair.
            problem: The problem.
            prompt: As the large model reads it, ids.
            budgets: Of its tokens.
        """
