"""Self-Route (arXiv 2505.20664) as an arm: a hidden state behind the problem chooses the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from glimprouter.chains import PreInferenceRouter, pre_inference_features
from glimprouter.evaluation.chain_systems.base import DevelopmentChains, prompt_ids
from glimprouter.evaluation.chain_systems.choosing import ChoosesModel
from glimprouter.policies.checks import check_probability
from glimprouter.tasks import Problem, Task

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["SelfRoute"]


class SelfRoute(ChoosesModel):
    """A logistic router over the small model's hidden state, above a chance: the large model.

    The source chooses short or long reasoning of one model; here the small model stands for the
    short. The router learns on development problems which the small model alone gets wrong; where
    it has all of them right, or none, there is nothing to learn, and all problems are alike.
    """

    def __init__(self, chains: DevelopmentChains, threshold: float = 0.5) -> None:
        """The rule.

        Args:
            chains: What the router learns from.
            threshold: Of the chance that the small model fails, in [0, 1].

        Raises:
            TypeError: No number.
            ValueError: Out of range.
        """
        check_probability("threshold", threshold)
        self._chains, self._threshold = chains, threshold

    @cached_property
    def _router(self) -> PreInferenceRouter | float:
        """Fitted; where all problems are of one kind, the chance of each."""
        known = self._chains.small
        wrong = [not each.right for each in known]
        if len(set(wrong)) == 1:
            return float(wrong[0])
        features = _features(self._chains.model, [each.problem for each in known])
        return PreInferenceRouter(features, wrong)

    def prepare(self, task: Task) -> None:
        """Fits the router."""
        super().prepare(task)
        _ = self._router

    def large(self, model: RoutedModel, problems: Sequence[Problem]) -> list[bool]:
        """By the router."""
        if isinstance(self._router, float):
            return [self._router > self._threshold] * len(problems)
        chances = self._router.chances(_features(model, problems))
        return [bool(chance > self._threshold) for chance in chances]


def _features(model: RoutedModel, problems: Sequence[Problem]) -> Any:
    from glimprouter.hf.pair.locks import exclusive

    ids = prompt_ids(model, (problem.prompt for problem in problems), "small")
    with exclusive(model.small):
        return pre_inference_features(model.small, ids)
