"""What a system around the chain is to an evaluation, and what it may learn from."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from glimprouter.chains.whole_chains import write_alone
from glimprouter.config import ModelName
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.files import write_atomically
from glimprouter.tasks import Problem, Task

if TYPE_CHECKING:
    from glimprouter.hf import Result, RoutedModel, TokenCounts

__all__ = [
    "ChainSystem",
    "DevelopmentChains",
    "Finished",
    "Solved",
    "alone",
    "outcome_of",
    "prompt_ids",
]

# Told of a problem as soon as it is solved: its place among those in flight, and what came of it.
Finished: TypeAlias = Callable[[int, Outcome], None]


class ChainSystem(ABC):
    """Solves problems, deciding about whole chains.

    Attributes:
        greedy: Whether it draws nothing, so that one run of it is all.
        one_at_a_time: Whether problems of a batch follow one another, so that its seconds are not
            those of a batch.
        task: Of the problems, once it is prepared.
    """

    task: Task

    greedy: bool = False

    def rows(self, batch: int) -> int:
        """Sequences that ``batch`` problems have in flight, at most."""
        return batch

    one_at_a_time: bool = False

    def prepare(self, task: Task) -> None:
        """Fits and calibrates what it needs; again, it does nothing.

        Args:
            task: Of the problems.

        Raises:
            ValueError: The development problems tell too little.
        """
        self.task = task

    @abstractmethod
    def solve(
        self,
        model: RoutedModel,
        problems: Sequence[Problem],
        seeds: Sequence[int],
        finished: Finished,
    ) -> None:
        """Solves some problems, and tells what came of each, :attr:`Outcome.decision` among it.

        Args:
            model: The pair, without a policy.
            problems: In flight together, where the system can.
            seeds: One a problem.
            finished: Called once with each problem, as soon as it is solved.

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
        token_ids: That were written.
        right: Whether the answer is.
    """

    problem: Problem
    token_ids: list[int]
    right: bool


class DevelopmentChains:
    """Chains of each model alone on the development problems, written once somebody asks.

    They are kept in the folder of the evaluation, whose pair and settings are always the same.

    Attributes:
        model: The pair.
    """

    def __init__(
        self,
        model: RoutedModel,
        task: Task,
        problems: Sequence[Problem],
        batch: int,
        folder: Path,
    ) -> None:
        """Nothing is written yet.

        Args:
            model: The pair, without a policy.
            task: Checks the answers.
            problems: Of the development split.
            batch: In flight.
            folder: Where they are kept.
        """
        self.model = model
        self._task, self._problems, self._batch = task, problems, batch
        self._folder = folder

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

    def texts(self, writer: ModelName) -> tuple[list[list[int]], list[int]]:
        """Each prompt with a model's chain behind it, and where the chain begins."""
        known = self.small if writer == "small" else self.large
        prompts = prompt_ids(self.model, (each.problem.prompt for each in known), writer)
        texts = [[*p, *k.token_ids] for p, k in zip(prompts, known, strict=True)]
        return texts, [len(prompt) for prompt in prompts]

    def _solved(self, writer: ModelName) -> list[Solved]:
        path = self._folder / f"development-{writer}.json"
        known = _known(path)
        for start in range(0, len(self._problems), self._batch):
            chunk = self._problems[start : start + self._batch]
            if all(problem.key in known for problem in chunk):
                continue
            keep = self._keeping(chunk, known, path)
            alone(self.model, chunk, list(range(start, start + len(chunk))), writer, keep)
        return [
            Solved(problem, known[problem.key]["token_ids"], known[problem.key]["right"])
            for problem in self._problems
        ]

    def _keeping(
        self, chunk: Sequence[Problem], known: dict[str, Any], path: Path
    ) -> Callable[[int, Result], None]:
        """Writes down a chain as soon as it has ended, unless it is known."""

        def keep(place: int, result: Result) -> None:
            problem = chunk[place]
            if problem.key in known:
                return
            right = result.trace.error is None and self._task.is_correct(problem, result.answer)
            known[problem.key] = {"right": right, "token_ids": result.token_ids}
            write_atomically(path, json.dumps(known))

        return keep


def _known(path: Path) -> dict[str, Any]:
    """Chains that were kept.

    Raises:
        ValueError: The file is damaged.
    """
    if not path.exists():
        return {}
    try:
        known = json.loads(path.read_text())
        if all(set(each) == {"right", "token_ids"} for each in known.values()):
            return dict(known)
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(f"{path} holds no chains; remove it, and they are written anew")


def alone(
    model: RoutedModel,
    problems: Sequence[Problem],
    seeds: Sequence[int],
    writer: ModelName,
    finished: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Chains and answers of one model; ``finished`` is told of each as it ends."""
    return write_alone(model, [problem.prompt for problem in problems], seeds, writer, finished)


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
    more_tokens: Mapping[str, int] | None = None,
) -> Outcome:
    """A chain of one model, and all that was computed beside it.

    Args:
        result: The chain that counts.
        writer: Who wrote all of it.
        others: Further chains, by who wrote all of each; chains of one model ran together.
        decision: Of the system.
        more_passes: Forward passes besides those of chains, by model.
        more_seconds: Of these.
        more_tokens: That were computed in them.
    """
    passes = {name: counts.passes for name, counts in result.counts.items()}
    for name in passes:
        for chains in others.values():
            passes[name] += max((chain.counts[name].passes for chain in chains), default=0)
        passes[name] += more_passes.get(name, 0)
    every = [chain for chains in others.values() for chain in chains]
    dropped = Counter(more_tokens or {})
    for name, chains in others.items():
        dropped[name] += sum(chain.trace.total_tokens for chain in chains)
    written = {"small": 0, "large": 0, writer: result.trace.total_tokens}
    return Outcome(
        result,
        written,
        {},
        {},
        dropped=_summed(every),
        dropped_tokens=dropped,
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
