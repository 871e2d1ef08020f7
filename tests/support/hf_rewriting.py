"""What the tests of rewritten steps, and of steps by both models, share."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from glimprouter.config import ModelName
from glimprouter.hf import Result, RoutedModel
from glimprouter.policies import Glimpse, Policy, RandomShare, Verdict, WrittenStep
from hf_runs import entropies, written


class Coins(Policy):
    """Gives some steps to the large model beforehand, and rejects some of the others."""

    def __init__(self, first: float = 0.2, then: float = 0.5) -> None:
        self.first, self.then = RandomShare(first, seed=1), RandomShare(then, seed=2)
        self.steps: list[WrittenStep] = []

    def before(self, glimpse: Glimpse) -> ModelName:
        return self.first.before(glimpse)

    def after(self, step: WrittenStep) -> Verdict:
        self.steps.append(step)
        return "rewrite" if self.rejects(step) else "keep"

    def rejects(self, step: WrittenStep) -> bool:
        coin = Glimpse(step.seed, step.substream, step.index, 0, None, 0.0)
        return self.then.before(coin) == "large"

    def beforehand(self) -> Policy:
        """The same writers, named before anything is written."""
        first, then = self.first, self.then

        class Either(Policy):
            def before(self, glimpse: Glimpse) -> ModelName:
                writers = {first.before(glimpse), then.before(glimpse)}
                return "large" if "large" in writers else "small"

        return Either()


def check_same(results: list[Result], want: list[Result]) -> None:
    assert [written(result) for result in results] == [written(result) for result in want]
    for result, plain in zip(results, want, strict=True):
        assert entropies(result) == pytest.approx(entropies(plain), rel=1e-3)


def blanks(model: RoutedModel, ids: Sequence[int]) -> int:
    """Tokens of white space that a step begins with."""
    texts = [model.tokenizer.decode([token]) for token in ids]
    return next((place for place, text in enumerate(texts) if text.strip(" \t\n\r\v\f")), 0)
