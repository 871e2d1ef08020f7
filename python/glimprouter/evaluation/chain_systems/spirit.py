"""SPIRIT (arXiv 2502.13260) as an arm: the large model answers from a chain without idle steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from glimprouter.chains import pruned, step_importance
from glimprouter.evaluation.chain_systems.base import (
    ChainSystem,
    Finished,
    alone,
    outcome_of,
    prompt_ids,
)
from glimprouter.evaluation.chain_systems.plain_chain import (
    Greedy,
    check_thinking,
    ends_of,
    text_of,
)
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.policies.checks import check_score
from glimprouter.tasks import Problem

if TYPE_CHECKING:
    from glimprouter.hf import Result, RoutedModel

__all__ = ["Spirit"]


class Spirit(ChainSystem):
    """The large model's chain loses steps that its answer does not miss, and is answered anew.

    The new answer is greedy. It costs more than it saves: what comes of it is whether the answer
    still stands, which a model that is trained on pruned chains would profit from. That training is
    the source's, and not done here. The decision is the share of the steps that stay.
    """

    def __init__(self, most: float = 0.01) -> None:
        """The rule.

        Args:
            most: Steps whose absence raises the answer's log-perplexity by at most so much are
                dropped, nats a token.

        Raises:
            TypeError: No number.
            ValueError: NaN.
        """
        check_score("most", most)
        self._most = most

    def check(self, model: RoutedModel) -> None:
        """Refuses thinking without an end."""
        check_thinking(model)

    def solve(
        self,
        model: RoutedModel,
        problems: Sequence[Problem],
        seeds: Sequence[int],
        finished: Finished,
    ) -> None:
        """By the large model, twice."""
        results = alone(model, problems, seeds, "large")
        prompts = prompt_ids(model, (problem.prompt for problem in problems), "large")
        for place, each in enumerate(zip(results, prompts, strict=True)):
            finished(place, self._pruned(model, *each))

    def _pruned(self, model: RoutedModel, result: Result, prompt: list[int]) -> Outcome:
        from glimprouter.hf.pair.locks import exclusive

        trace, parts = result.trace, _parts(model, result)
        if not parts.answer or not parts.steps:  # it has not come to an answer: nothing to prune
            return outcome_of(result, "large", {}, decision=1.0, more_passes={})
        before, ends = [*prompt, *parts.opening], ends_of(model)
        began = time.perf_counter()
        with exclusive(model.large):
            answer = [*parts.closing, *parts.answer]
            rises = step_importance(model.large, before, parts.steps, answer)
            names = [str(rise.index) for rise in rises]
            stay = [int(name) for name in pruned(names, rises, self._most)]
            chain = [token for place in stay for token in parts.steps[place]]
            kept = [*before, *chain, *parts.closing]
            again = Greedy(model.large).write(kept, trace.answer_limit, ends)
        seconds = time.perf_counter() - began
        steps = [dataclasses.replace(trace.steps[n], index=i) for i, n in enumerate(stay)]
        text = text_of(model, again).strip()
        shorter = dataclasses.replace(trace, steps=steps, answer=text, answer_tokens=len(again))
        shorter.total_tokens = len(parts.opening) + len(chain) + len(parts.closing) + len(again)
        # What was written first and is not kept, and the chain once for each of its steps.
        dropped = trace.total_tokens - shorter.total_tokens + len(again)
        whole = sum(map(len, parts.steps)) + len(answer)
        read = (len(rises) + 1) * whole - sum(map(len, parts.steps))
        return outcome_of(
            dataclasses.replace(result, trace=shorter, answer=text),
            "large",
            {},
            decision=len(stay) / len(trace.steps),
            more_passes={"large": len(rises) + 1 + len(again)},
            more_seconds=seconds + trace.seconds - shorter.seconds,
            more_tokens={"large": dropped + read},
        )


class _Parts(NamedTuple):
    """Ids of a chain."""

    opening: list[int]
    steps: list[list[int]]
    closing: list[int]
    answer: list[int]


def _parts(model: RoutedModel, result: Result) -> _Parts:
    """Opening and end of the thinking, steps, and the answer; empty where it has not ended."""
    ends, ids = set(model.large_boundary.think_end_ids), result.token_ids
    place = next((n for n, token in enumerate(ids) if token in ends), None)
    if place is None:
        return _Parts([], [], [], [])
    steps: list[list[int]] = []
    opening: list[int] = []
    first = 0
    for step in result.trace.steps:
        last = min(first + step.num_tokens, place)
        steps.append(ids[first:last])
        first += step.num_tokens
    if steps:  # a model that opens its thinking itself does so in its first step
        starts = set(model.large_boundary.think_start_ids)
        opened = next((n + 1 for n, token in enumerate(steps[0]) if token in starts), 0)
        opening, steps[0] = steps[0][:opened], steps[0][opened:]
    return _Parts(opening, steps, ids[min(first, place) : place + 1], ids[place + 1 :])
