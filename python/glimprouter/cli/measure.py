"""Solving the demo's problems: in batches for accuracy, one at a time for latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glimprouter.config import RouterConfig
from glimprouter.demo_pair.task import Problem, is_correct

if TYPE_CHECKING:
    from glimprouter.hf import Result, RoutedModel


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to solve the problems.

    Attributes:
        name: Its row in the tables.
        model: The pair under this way's routing.
    """

    name: str
    model: RoutedModel


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way did with one problem.

    Attributes:
        correct: Whether the answer is exactly right.
        steps, large_steps: Steps of the thinking, and those that the large model wrote.
        tokens, large_tokens: Generated tokens, the answer's included, likewise.
    """

    correct: bool
    steps: int
    large_steps: int
    tokens: int
    large_tokens: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall-clock time of one problem, prompt included, alone on the machine.

    Attributes:
        seconds: From the prompt to the last token.
        tokens: Generated tokens.
    """

    seconds: float
    tokens: int

    @property
    def milliseconds_per_token(self) -> float:
        """Seconds of the problem over its tokens, times 1000."""
        return 1e3 * self.seconds / max(self.tokens, 1)


def make_contenders(
    small: Any, large: Any, tokenizer: Any, threshold: float, **pair_options: Any
) -> list[Contender]:
    """Routed, small alone and large alone: greedy, with the same weights in memory.

    Args:
        small: The small Hugging Face model.
        large: The large one.
        tokenizer: Tokenizer of both.
        threshold: tau in nats.
        **pair_options: Options of ``RoutedModel``.
    """
    from glimprouter.hf import RoutedModel

    config = RouterConfig(
        threshold=threshold,
        temperature=0.0,
        max_step_tokens=64,  # longer than any right trace; a wrong one ends here at the latest
        max_think_tokens=320,
        max_answer_tokens=16,
    )
    ways = {
        "routed": config,
        "small alone": config.replace(route="small", answer_model="small"),
        "large alone": config.replace(route="large", answer_model="large"),
    }
    return [
        Contender(name, RoutedModel(small, large, tokenizer, way, **pair_options))
        for name, way in ways.items()
    ]


def outcome_of(problem: Problem, result: Result, large_tokens: int) -> Outcome:
    """Counts of one finished problem, of whose tokens the large model wrote ``large_tokens``."""
    steps = result.trace.steps
    return Outcome(
        correct=is_correct(problem, result.answer),
        steps=len(steps),
        large_steps=sum(step.model == "large" for step in steps),
        tokens=len(result.token_ids),
        large_tokens=large_tokens,
    )


def solve(
    contender: Contender, problems: Sequence[Problem], advance: Callable[[], None]
) -> list[Outcome]:
    """Solves all problems in batches.

    Args:
        contender: The way to solve them.
        problems: At least one.
        advance: Called after each finished problem.

    Returns:
        One outcome a problem, in the order of ``problems``.

    Raises:
        RuntimeError: The engine ended a problem without a result.
    """
    results: dict[int, Result] = {}
    large_tokens = [0] * len(problems)
    for event in contender.model.stream([problem.prompt for problem in problems]):
        if event.kind == "error":
            raise RuntimeError(f"{contender.name}: {event.message}")
        if event.token_id is not None and event.model == "large":
            large_tokens[event.sequence] += 1
        if event.result is not None:
            results[event.sequence] = event.result
            advance()
    return [outcome_of(p, results[i], large_tokens[i]) for i, p in enumerate(problems)]


def time_alone(
    contenders: Sequence[Contender], problems: Sequence[Problem], advance: Callable[[], None]
) -> dict[str, list[Latency]]:
    """Times each problem at batch 1; the contenders take turns, so that drift falls on all alike.

    Args:
        contenders: Ways to compare.
        problems: At least one.
        advance: Called after each timed run.

    Returns:
        For each contender's name one time a problem.
    """
    latencies: dict[str, list[Latency]] = {contender.name: [] for contender in contenders}
    for contender in contenders:  # the first call allocates and picks kernels
        contender.model.generate([problems[0].prompt])
    for turn, problem in enumerate(problems):
        shift = turn % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            start = time.perf_counter()
            result = contender.model.generate([problem.prompt])[0]
            seconds = time.perf_counter() - start
            latencies[contender.name].append(Latency(seconds, len(result.token_ids)))
            advance()
    return latencies
