"""Fractured sampling (arXiv 2505.12992) as an arm: small chains, cut at several depths, vote."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from glimprouter.chains import FracturedSampling, fractured_sampling, majority
from glimprouter.config import check_integer
from glimprouter.evaluation.chain_systems.base import ChainSystem, Finished
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.tasks import Problem, Task

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["Fractured"]


class Fractured(ChainSystem):
    """One problem at a time; the decision is the share of the votes that the answer got.

    Its seconds are those of the clock, since cuts share what their chain has computed. Answers are
    alike where the task says so (:meth:`glimprouter.tasks.Task.vote_key`).
    """

    one_at_a_time = True

    def __init__(self, chains: int = 4, depths: int = 2, answers: int = 1) -> None:
        """The rule.

        Args:
            chains: n, >= 1.
            depths: H, >= 1.
            answers: m of each cut, >= 1.

        Raises:
            TypeError: No integer.
            ValueError: Out of range.
        """
        for name, value in (("chains", chains), ("depths", depths), ("answers", answers)):
            check_integer(name, value, 1)
        self._sizes = {"chains": chains, "depths": depths, "answers": answers}

    def rows(self, batch: int) -> int:
        """All cuts of one problem."""
        return math.prod(self._sizes.values())

    def solve(
        self,
        model: RoutedModel,
        problems: Sequence[Problem],
        seeds: Sequence[int],
        finished: Finished,
    ) -> None:
        """By the vote."""
        for place, (problem, seed) in enumerate(zip(problems, seeds, strict=True)):
            began = time.perf_counter()
            one = fractured_sampling(
                model,
                problem.prompt,
                seed=seed,
                route="small",
                answer_model="small",
                **self._sizes,
            )
            finished(place, _outcome(self.task, one, time.perf_counter() - began))


def _outcome(task: Task, one: FracturedSampling, seconds: float) -> Outcome:
    """The first chain that came to the answer; all that was written beside it was dropped."""
    deepest = sorted(one.fractures, key=lambda fracture: -fracture.depth)  # ties are its
    results = [fracture.result for fracture in deepest]
    keys = [task.vote_key(result.answer) for result in results]
    vote = majority(keys)
    result = results[keys.index(vote.answer)] if vote.cast else results[0]
    # All run in the same passes, and a cut has the counts of its chain up to there. The large model
    # is in none of them.
    passes = {name: max(r.counts[name].passes for r in results) for name in ("small", "large")}
    own = result.trace.total_tokens
    every = sum(fracture.written for fracture in one.fractures)
    return Outcome(
        result,
        {"small": own, "large": 0},
        {},
        {},
        dropped_tokens={"small": every - own},
        dropped_seconds=seconds - result.trace.seconds,
        all_passes=passes,
        decision=vote.votes / max(vote.cast, 1),
    )
