"""ARI (arXiv 2408.14528) as an arm: the large model in 8 bits, and in full where that is close."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from glimprouter.chains import AdaptiveResolution, resolution_margins
from glimprouter.config import ModelName
from glimprouter.evaluation.chain_systems.base import ChainSystem, DevelopmentChains, prompt_ids
from glimprouter.evaluation.chain_systems.plain_chain import (
    check_thinking,
    ends_of,
    most_tokens,
    outcome_of_tokens,
)
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.policies.checks import check_probability
from glimprouter.tasks import Problem

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["ARI"]


class ARI(ChainSystem):
    """Greedy, one problem at a time, and without the pair's small model.

    In its records "small" is the large model with its weights rounded to 8 bits, "large" the same
    in full. T is calibrated on the large model's development chains. The decision is the share of
    the tokens that the full model decided.
    """

    greedy = True

    def __init__(self, chains: DevelopmentChains, share: float = 1.0) -> None:
        """The rule.

        Args:
            chains: What T is calibrated on.
            share: Of the differing decisions that T is to catch, in [0, 1]; 1 as in the source.

        Raises:
            TypeError: No number.
            ValueError: Out of range.
        """
        check_probability("share", share)
        self._chains, self._share = chains, share

    def check(self, model: RoutedModel) -> None:
        """Refuses models whose cache is of another kind, and thinking without an end."""
        from glimprouter.chains.plain_cache import plain_cache

        check_thinking(model)
        plain_cache(model.large)

    @cached_property
    def _resolution(self) -> AdaptiveResolution:
        from glimprouter.hf.pair.locks import exclusive

        model, known = self._chains.model, self._chains.large
        prompts = prompt_ids(model, (each.problem.prompt for each in known), "large")
        texts = [[*p, *k.result.token_ids] for p, k in zip(prompts, known, strict=True)]
        with exclusive(model.large):
            margins = resolution_margins(self._chains.reduced, model.large, texts)
        threshold = margins.threshold(self._share)
        return AdaptiveResolution(self._chains.reduced, model.large, threshold)

    def solve(
        self, model: RoutedModel, problems: Sequence[Problem], seeds: Sequence[int]
    ) -> list[Outcome]:
        """By both precisions; seeds change nothing."""
        from glimprouter.hf.pair.locks import exclusive

        resolution, most = self._resolution, most_tokens(self._chains)
        found = []
        prompts = prompt_ids(model, (problem.prompt for problem in problems), "large")
        for problem, ids in zip(problems, prompts, strict=True):
            began = time.perf_counter()
            with exclusive(model.large):
                text = resolution.generate(ids, most, ends_of(model))
            seconds = time.perf_counter() - began
            writers: list[ModelName] = ["large" if full else "small" for full in text.by_full]
            found.append(
                outcome_of_tokens(
                    model,
                    problem,
                    text.tokens,
                    writers,
                    passes={
                        "small": text.counts.reduced_passes,
                        "large": text.counts.full_passes,
                    },
                    seconds=seconds,
                    decision=sum(text.by_full) / len(text.by_full),
                )
            )
        return found
