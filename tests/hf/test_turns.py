"""The order of the passes is nobody's business but the clock's: no token depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import hf_pairs
from glimprouter.hf.run import loop
from glimprouter.hf.run.turns import WaitingTurns

pytestmark = pytest.mark.both_engines


class Eager(WaitingTurns):
    """The other model's turn as soon as anybody waits for it."""

    def __init__(self) -> None:
        super().__init__(fewer=1e9, patience=1)


class Patient(WaitingTurns):
    """One model until none of its rows is left."""

    def __init__(self) -> None:
        super().__init__(fewer=1e9, patience=10**9)


def outcome(result: Any) -> Any:
    steps = [(step.model, step.num_tokens, step.entropy) for step in result.trace.steps]
    return result.token_ids, steps


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_order_of_passes_changes_no_sequence(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = hf_pairs.random_pair("qwen3")
    routed = pair.routed(temperature=temperature)
    prompts, seeds = pair.prompts * 2, range(2 * len(pair.prompts))
    orders: list[list[str]] = []

    def results(turns: Callable[[], WaitingTurns]) -> list[Any]:
        order: list[str] = []

        def recorded() -> WaitingTurns:
            policy = turns()
            choose = policy.choose

            def choice(waiting: Any) -> str | None:
                order.append(choose(waiting) or "")
                return order[-1] or None

            monkeypatch.setattr(policy, "choose", choice)
            return policy

        monkeypatch.setattr(loop, "WaitingTurns", recorded)
        orders.append(order)
        return [outcome(result) for result in routed.generate(prompts, seeds=seeds)]

    want = results(WaitingTurns)
    assert {step[0] for _, steps in want for step in steps} == {"small", "large"}
    for turns in (Eager, Patient):
        for got, expected in zip(results(turns), want, strict=True):
            assert got[0] == expected[0]
            for ours, theirs in zip(got[1], expected[1], strict=True):
                assert ours[:2] == theirs[:2]
                assert ours[2] == pytest.approx(theirs[2], abs=1e-4)
    assert len({tuple(order) for order in orders}) == 3, "the orders must differ"
