"""What a system around the chain is to an evaluation, and what it may learn from."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from glimprouter.config import ModelName
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.tasks import Problem, Task

if TYPE_CHECKING:
    from glimprouter.hf import Result, RoutedModel, TokenCounts

__all__ = ["ChainSystem", "DevelopmentChains", "Solved", "alone", "outcome_of", "prompt_ids"]


class ChainSystem(ABC):
    """Solves problems, deciding about whole chains.

    Attributes:
        greedy: Whether it draws nothing, so that one run of it is all.
    """

    greedy: bool = False

    def rows(self, batch: int) -> int:
        """Sequences that ``batch`` problems have in flight, at most."""
        return batch

    @abstractmethod
    def solve(
        self, model: RoutedModel, problems: Sequence[Problem], seeds: Sequence[int]
    ) -> list[Outcome]:
        """What came of each problem, :attr:`Outcome.decision` among it.

        Args:
            model: The pair, without a policy.
            problems: In flight together, where the system can.
            seeds: One a problem.

        Raises:
            RuntimeError: A model gave invalid logits.
        """

    def check(self, model: RoutedModel) -> None:  # noqa: B027 (most can serve any pair)
        """Refuses a pair that it cannot serve.

        Raises:
            ValueError: With the reason.
        """


class Solved(NamedTuple):
    """A development problem and a chain.

    Attributes:
        problem: The problem.
        result: Of one model alone.
        right: Whether its answer is.
    """

    problem: Problem
    result: Result
    right: bool


class DevelopmentChains:
    """Chains of each model alone on the development problems, written once somebody asks.

    Attributes:
        model: The pair.
    """

    def __init__(
        self, model: RoutedModel, task: Task, problems: Sequence[Problem], batch: int
    ) -> None:
        """Nothing is written yet.

        Args:
            model: The pair, without a policy.
            task: Checks the answers.
            problems: Of the development split.
            batch: In flight.
        """
        self.model = model
        self._task, self._problems, self._batch = task, problems, batch

    @cached_property
    def small(self) -> list[Solved]:
        """The small model's."""
        return self._solved("small")

    @cached_property
    def large(self) -> list[Solved]:
        """The large model's."""
        return self._solved("large")

    @cached_property
    def reduced(self) -> Any:
        """The large model with its weights rounded to 8 bits."""
        from glimprouter.chains import reduced_copy

        return reduced_copy(self.model.large, "int8")

    def _solved(self, writer: ModelName) -> list[Solved]:
        found = []
        for start in range(0, len(self._problems), self._batch):
            chunk = self._problems[start : start + self._batch]
            seeds = list(range(start, start + len(chunk)))
            for problem, result in zip(chunk, alone(self.model, chunk, seeds, writer), strict=True):
                right = self._task.is_correct(problem, result.answer)
                found.append(Solved(problem, result, right))
        return found


def alone(
    model: RoutedModel, problems: Sequence[Problem], seeds: Sequence[int], writer: ModelName
) -> list[Result]:
    """Chains and answers of one model."""
    prompts = [problem.prompt for problem in problems]
    return model.generate(prompts, list(seeds), route=writer, answer_model=writer)


def prompt_ids(model: RoutedModel, prompts: Iterable[str], reader: ModelName) -> list[list[int]]:
    """Prompts as a model reads them."""
    from glimprouter.hf.pair.prompts import encode_prompt

    encoded = (encode_prompt(p, model.tokenizer, model.large_tokenizer) for p in prompts)
    return [each.small if reader == "small" else each.large for each in encoded]


def outcome_of(
    result: Result,
    writer: ModelName,
    others: Mapping[str, Sequence[Result]],
    *,
    decision: float,
    more_passes: Mapping[str, int],
    more_seconds: float = 0.0,
) -> Outcome:
    """A chain of one model, and all that was computed beside it.

    Args:
        result: The chain that counts.
        writer: Who wrote all of it.
        others: Further chains, by who wrote all of each; chains of one model ran together.
        decision: Of the system.
        more_passes: Forward passes besides those of chains, by model.
        more_seconds: Of these.
    """
    passes = {name: counts.passes for name, counts in result.counts.items()}
    for name in passes:
        for chains in others.values():
            passes[name] += max((chain.counts[name].passes for chain in chains), default=0)
        passes[name] += more_passes.get(name, 0)
    every = [chain for chains in others.values() for chain in chains]
    written = {"small": 0, "large": 0, writer: len(result.token_ids)}
    return Outcome(
        result,
        written,
        {},
        {},
        dropped=_summed(every),
        dropped_tokens={
            name: sum(len(chain.token_ids) for chain in chains) for name, chains in others.items()
        },
        dropped_seconds=sum(chain.trace.seconds for chain in every) + more_seconds,
        all_passes=passes,
        decision=decision,
    )


def _summed(results: Sequence[Result]) -> dict[str, TokenCounts]:
    """Counts of several chains, by model."""
    found: dict[str, TokenCounts] = {}
    for result in results:
        for name, counts in result.counts.items():
            if name in found:
                so_far = dataclasses.asdict(found[name])
                both = {key: n + so_far[key] for key, n in dataclasses.asdict(counts).items()}
                counts = type(counts)(**both)
            found[name] = counts
    return found
