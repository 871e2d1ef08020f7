"""Self-Route (arXiv 2505.20664) as an arm: a hidden state behind the problem chooses the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from glimprouter.chains import PreInferenceRouter, pre_inference_features
from glimprouter.evaluation.chain_systems.base import DevelopmentChains, prompt_ids
from glimprouter.evaluation.chain_systems.choosing import ChoosesModel
from glimprouter.policies.checks import check_probability
from glimprouter.tasks import Problem

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["SelfRoute"]


class SelfRoute(ChoosesModel):
    """A logistic router over the small model's hidden state, above a chance: the large model.

    The source chooses short or long reasoning of one model; here the small model stands for the
    short. The router is fitted on the development problems that the small model alone got wrong.
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
    def _router(self) -> PreInferenceRouter:
        known = self._chains.small
        features = _features(self._chains.model, [each.problem for each in known])
        return PreInferenceRouter(features, [not each.right for each in known])

    def large(self, model: RoutedModel, problems: Sequence[Problem]) -> list[bool]:
        """By the router."""
        chances = self._router.chances(_features(model, problems))
        return [bool(chance > self._threshold) for chance in chances]


def _features(model: RoutedModel, problems: Sequence[Problem]) -> Any:
    from glimprouter.hf.pair.locks import exclusive

    ids = prompt_ids(model, (problem.prompt for problem in problems), "small")
    with exclusive(model.small):
        return pre_inference_features(model.small, ids)
