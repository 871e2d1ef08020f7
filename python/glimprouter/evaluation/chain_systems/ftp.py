"""FTP (arXiv 2412.11494) as an arm: the large model, whose easy tokens skip some of its blocks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from glimprouter.chains import BlockSkipping, EntropySkips, record_blocks
from glimprouter.config import check_integer
from glimprouter.evaluation.chain_systems.base import ChainSystem, DevelopmentChains, prompt_ids
from glimprouter.evaluation.chain_systems.plain_chain import (
    check_thinking,
    ends_of,
    most_tokens,
    outcome_of_tokens,
)
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.policies.checks import check_at_least
from glimprouter.tasks import Problem

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["FTP"]

TEXTS = 8  # development chains on which blocks are ranked: each token of them counts


class FTP(ChainSystem):
    """Greedy, one problem at a time, by the large model alone.

    A pass skips the more blocks the surer the model was of the token before
    (:class:`glimprouter.chains.EntropySkips`): those first that turn hidden states least, on the
    large model's development chains. The router that the source trains is another; in passes of
    one token it could skip whole blocks only, as this does. The decision is the share of tokens
    times blocks that were skipped.
    """

    greedy = True

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
        check_thinking(model)
        BlockSkipping(model.large, EntropySkips([0], low=self._low, high=self._high))
        if self._blocks >= (count := model.large.config.get_text_config().num_hidden_layers):
            raise ValueError(f"the large model has {count} blocks, not all can be skipped")

    @cached_property
    def _scorer(self) -> EntropySkips:
        from glimprouter.hf.pair.locks import exclusive

        model, known = self._chains.model, self._chains.large[:TEXTS]
        prompts = prompt_ids(model, (each.problem.prompt for each in known), "large")
        texts = [[*p, *k.result.token_ids] for p, k in zip(prompts, known, strict=True)]
        attention = model.large.config._attn_implementation
        with exclusive(model.large):
            model.large.set_attn_implementation("eager")  # recording reads attention weights
            try:
                order = record_blocks(model.large, texts).order()
            finally:
                model.large.set_attn_implementation(attention)
        return EntropySkips(order[: self._blocks], low=self._low, high=self._high)

    def solve(
        self, model: RoutedModel, problems: Sequence[Problem], seeds: Sequence[int]
    ) -> list[Outcome]:
        """By the large model; seeds change nothing."""
        from glimprouter.hf.pair.locks import exclusive

        scorer, most = self._scorer, most_tokens(self._chains)
        found = []
        prompts = prompt_ids(model, (problem.prompt for problem in problems), "large")
        for problem, ids in zip(problems, prompts, strict=True):
            skipping = BlockSkipping(model.large, scorer)
            began = time.perf_counter()
            with exclusive(model.large), skipping:
                tokens = greedy(model, ids, most)
            found.append(
                outcome_of_tokens(
                    model,
                    problem,
                    tokens,
                    ["large"] * len(tokens),
                    passes={"small": 0, "large": len(tokens)},
                    seconds=time.perf_counter() - began,
                    decision=skipping.counts.share,
                )
            )
        return found


def greedy(model: RoutedModel, ids: Sequence[int], most: int) -> list[int]:
    """What the large model goes on with, by the ``generate`` of transformers."""
    import torch

    prompt = torch.tensor([list(ids)], device=model.large.device)
    with torch.inference_mode():
        text = model.large.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=ends_of(model),
            pad_token_id=ends_of(model)[0],
        )
    written: list[int] = text[0, len(ids) :].tolist()
    return written
