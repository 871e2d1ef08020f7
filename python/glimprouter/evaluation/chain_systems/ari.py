"""ARI (arXiv 2408.14528) as an arm: the large model in 8 bits, and in full where that is close."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from glimprouter.chains import AdaptiveResolution, resolution_margins
from glimprouter.evaluation.chain_systems.base import DevelopmentChains
from glimprouter.evaluation.chain_systems.one_by_one import OneByOne
from glimprouter.evaluation.chain_systems.plain_chain import (
    Budgets,
    Written,
    outcome_of_tokens,
    within_budgets,
)
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.policies.checks import check_probability
from glimprouter.tasks import Problem, Task

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["ARI"]


class ARI(OneByOne):
    """Greedy, one problem at a time, and without the pair's small model.

    In its records "small" is the large model with its weights rounded to 8 bits, "large" the same
    in full. T is calibrated on the large model's development chains. A chain whose thinking is
    closed by force is read anew for its answer. The decision is the share of the tokens that the
    full model decided.
    """

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
        """Refuses quantized models, caches of another kind, and thinking without an end."""
        from glimprouter.chains.plain_cache import plain_cache

        super().check(model)
        plain_cache(model.large)
        if getattr(model.large, "is_quantized", False):
            raise ValueError("the large model is quantized, and has no full weights to round")

    def prepare(self, task: Task) -> None:
        """Makes the rounded copy, and calibrates T."""
        super().prepare(task)
        _ = self._resolution

    @cached_property
    def _resolution(self) -> AdaptiveResolution:
        from glimprouter.hf.pair.locks import exclusive

        large, reduced = self._chains.model.large, self._chains.reduced
        texts, starts = self._chains.texts("large")
        with exclusive(large):
            margins = resolution_margins(reduced, large, texts, starts=starts)
        return AdaptiveResolution(reduced, large, margins.threshold(self._share))

    def solve_one(
        self, model: RoutedModel, problem: Problem, prompt: Sequence[int], budgets: Budgets
    ) -> Outcome:
        """By both precisions."""
        from glimprouter.hf.pair.locks import exclusive

        passes, full = Counter(small=0, large=0), 0

        def write(before: list[int], most: int, ends: list[int]) -> Written:
            nonlocal full
            text = self._resolution.generate(before, most, ends)
            full += sum(text.by_full)
            passes["small"] += text.counts.reduced_passes
            passes["large"] += text.counts.full_passes
            return Written(text.tokens, ["large" if full else "small" for full in text.by_full])

        began = time.perf_counter()
        with exclusive(model.large):
            written, _ = within_budgets(model, prompt, budgets, write)
        own = sum(writer == "large" for writer in written.writers)
        return outcome_of_tokens(
            model,
            problem,
            written,
            passes=passes,
            seconds=time.perf_counter() - began,
            decision=own / len(written.tokens),
            dropped_tokens={"small": full},  # it had computed them, too
        )
