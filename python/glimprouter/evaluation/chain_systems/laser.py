"""LaSeR (arXiv 2510.14943) as an arm: the large model solves what the small one doubts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from glimprouter.chains import first_token_logprobs, last_token_self_reward
from glimprouter.evaluation.chain_systems.base import (
    ChainSystem,
    DevelopmentChains,
    Finished,
    alone,
    outcome_of,
    prompt_ids,
)
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.policies.checks import check_probability
from glimprouter.tasks import Problem, Task

if TYPE_CHECKING:
    from glimprouter.hf import Result, RoutedModel

__all__ = ["LaSeR"]


class _Reference(NamedTuple):
    token: int  # z_c
    logprob: float  # c_ref, nats
    bound: float  # self-reward


class LaSeR(ChainSystem):
    """The small model solves; the large one solves anew what has the lowest self-rewards.

    The source trains the model until the number means something, which is not done here: z_c is
    the token that the model finds least likely behind its development solutions, c_ref its mean
    log-probability there, and the bound the quantile of the development rewards that leaves the
    wanted share below it. The decision is 1 for a problem of the large model, else 0.
    """

    def __init__(self, chains: DevelopmentChains, share: float = 0.25) -> None:
        """The rule.

        Args:
            chains: Where z_c, c_ref and the bound come from.
            share: Of the development problems that the large model would solve, in [0, 1].

        Raises:
            TypeError: No number.
            ValueError: Out of range.
        """
        check_probability("share", share)
        self._chains, self._share = chains, share

    def check(self, model: RoutedModel) -> None:
        """Refuses two vocabularies: a solution's ids must be the small model's own."""
        if model.translation is not None:
            raise ValueError("a self-reward needs one vocabulary for both models")

    @cached_property
    def _reference(self) -> _Reference:
        from glimprouter.hf.pair.locks import exclusive

        model = self._chains.model
        ids, _ = self._chains.texts("small")
        with exclusive(model.small):
            logprobs = first_token_logprobs(model.small, ids).astype(np.float64)
        token = int(logprobs.mean(axis=0).argmin())
        mean = float(logprobs[:, token].mean())
        rewards = 0.1 * (logprobs[:, token] - mean)
        bound = float(np.quantile(rewards, self._share))
        if self._share in (0.0, 1.0):  # nothing, or everything, also beyond what was seen
            bound = -math.inf if self._share == 0.0 else math.inf
        return _Reference(token, mean, bound)

    def prepare(self, task: Task) -> None:
        """Chooses token, reference and bound."""
        super().prepare(task)
        _ = self._reference

    def solve(
        self,
        model: RoutedModel,
        problems: Sequence[Problem],
        seeds: Sequence[int],
        finished: Finished,
    ) -> None:
        """By the small model, and where it doubts by the large one."""
        from glimprouter.hf.pair.locks import exclusive

        known = self._reference
        first = alone(model, problems, seeds, "small")
        began = time.perf_counter()
        with exclusive(model.small):
            rewards = last_token_self_reward(
                model.small, _ids(model, problems, first), known.token, reference=known.logprob
            )
        seconds = (time.perf_counter() - began) / len(problems)

        def outcome(result: Result, anew: Result | None = None) -> Outcome:
            read = {"small": result.trace.total_tokens}  # once more, by the small model
            more: Any = {"more_passes": {"small": 1}, "more_seconds": seconds, "more_tokens": read}
            if anew is None:
                return outcome_of(result, "small", {}, decision=0.0, **more)
            return outcome_of(anew, "large", {"small": [result]}, decision=1.0, **more)

        doubted = [n for n, reward in enumerate(rewards) if reward < known.bound]
        for n, result in enumerate(first):
            if n not in doubted:
                finished(n, outcome(result))

        def tell(own: int, anew: Result) -> None:
            finished(doubted[own], outcome(first[doubted[own]], anew))

        if doubted:
            again = [problems[n] for n in doubted]
            alone(model, again, [seeds[n] for n in doubted], "large", tell)


def _ids(
    model: RoutedModel, problems: Sequence[Problem], results: Sequence[Result]
) -> list[list[int]]:
    prompts = prompt_ids(model, (problem.prompt for problem in problems), "small")
    return [[*ids, *result.token_ids] for ids, result in zip(prompts, results, strict=True)]
