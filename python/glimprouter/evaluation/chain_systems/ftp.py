"""FTP (arXiv 2412.11494) as an arm: the large model, whose easy tokens skip some of its blocks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from glimprouter.chains import BlockSkipping, EntropySkips, record_blocks
from glimprouter.config import check_integer
from glimprouter.evaluation.chain_systems.base import DevelopmentChains
from glimprouter.evaluation.chain_systems.one_by_one import OneByOne
from glimprouter.evaluation.chain_systems.plain_chain import (
    Budgets,
    Greedy,
    Written,
    outcome_of_tokens,
    within_budgets,
)
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.policies.checks import check_at_least
from glimprouter.tasks import Problem, Task

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["FTP"]

# Development chains on which blocks are ranked, and tokens of each: every token counts, and so does
# the square of the length, in memory.
TEXTS, LENGTH = 8, 1024


class FTP(OneByOne):
    """Greedy, one problem at a time, by the large model alone.

    A pass skips the more blocks the surer the model was of the token before
    (:class:`glimprouter.chains.EntropySkips`): those first that turn hidden states least, on the
    large model's development chains. The router that the source trains is another; in passes of
    one token it could skip whole blocks only, as this does. The decision is the share of written
    tokens times blocks that were skipped.
    """

    def __init__(
        self, chains: DevelopmentChains, blocks: int = 1, low: float = 0.05, high: float = 0.5
    ) -> None:
        """The rule.

        Args:
            chains: On which blocks are ranked.
            blocks: That may be skipped, >= 1 and fewer than the model has.
            low: Entropy at or below which all of these are, nats.
            high: Entropy from which on none is.

        Raises:
            TypeError: A value of another type.
            ValueError: Out of range.
        """
        check_integer("blocks", blocks, 1)
        check_at_least("low", low, 0)
        check_at_least("high", high, 0)
        EntropySkips([0], low=low, high=high)  # the same checks
        self._chains, self._blocks, self._low, self._high = chains, blocks, low, high

    def check(self, model: RoutedModel) -> None:
        """Refuses decoders of another form, and thinking without an end."""
        super().check(model)
        BlockSkipping(model.large, EntropySkips([0], low=self._low, high=self._high))
        if self._blocks >= (count := model.large.config.get_text_config().num_hidden_layers):
            raise ValueError(f"the large model has {count} blocks, not all can be skipped")

    @cached_property
    def _scorer(self) -> EntropySkips:
        from glimprouter.hf.pair.locks import exclusive

        model = self._chains.model
        texts = [text[:LENGTH] for text in self._chains.texts("large")[0][:TEXTS]]
        attention = model.large.config._attn_implementation
        with exclusive(model.large):
            model.large.set_attn_implementation("eager")  # recording reads attention weights
            try:
                order = record_blocks(model.large, texts).order()
            finally:
                model.large.set_attn_implementation(attention)
        return EntropySkips(order[: self._blocks], low=self._low, high=self._high)

    def prepare(self, task: Task) -> None:
        """Ranks the blocks."""
        super().prepare(task)
        _ = self._scorer

    def solve_one(
        self, model: RoutedModel, problem: Problem, prompt: Sequence[int], budgets: Budgets
    ) -> Outcome:
        """By the large model."""
        from glimprouter.hf.pair.locks import exclusive

        passes, greedy = 0, Greedy(model.large)

        def write(before: list[int], most: int, ends: list[int]) -> Written:
            nonlocal passes
            tokens = greedy.write(before, most, ends)
            passes += len(tokens)
            return Written(tokens, ["large"] * len(tokens))

        skipping = BlockSkipping(model.large, self._scorer)
        began = time.perf_counter()
        with exclusive(model.large), skipping:
            written, closed = within_budgets(model, prompt, budgets, write)
        blocks = len(skipping.counts.skipped)
        return outcome_of_tokens(
            model,
            problem,
            written,
            passes={"small": 0, "large": passes},
            seconds=time.perf_counter() - began,
            decision=float(skipping.counts.skipped.sum()) / (blocks * passes),
            dropped_tokens={"large": passes + closed - len(written.tokens)},
        )
