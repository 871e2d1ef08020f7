"""What the benchmark says of drafts: of the large model's steps only, beside a goal."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glimprouter.bench import acceptance, batch
from glimprouter.bench.table import COLUMNS, _cells


def result(steps: list[str], passes: int, compared: int, accepted: int) -> Any:
    trace = SimpleNamespace(steps=[SimpleNamespace(model=model) for model in steps])
    small = SimpleNamespace(compared=compared, accepted=accepted)
    return SimpleNamespace(
        trace=trace, counts={"small": small, "large": SimpleNamespace(passes=passes)}
    )


def test_passes_are_counted_by_large_steps_and_judged() -> None:
    results = [result(["small", "large"], 2, 10, 9), result(["large", "large"], 5, 10, 8)]
    held, bound, passes = acceptance.rows_of("greedy", 1.0, results, 0.9)
    assert held.value == pytest.approx(17 / 20)
    assert (bound.value, bound.met, held.met) == (0.9, None, None)
    assert passes.value == pytest.approx(7 / 3)
    assert (passes.goal, passes.met) == ("at most 3", True)
    slow = acceptance.rows_of("greedy", 1.0, [result(["large"], 4, 1, 0)], 0.9)[-1]
    assert slow.met is False
    assert _cells(slow)[COLUMNS.index("value")] == "4.000"
    none = acceptance.rows_of("greedy", 1.0, [result(["small"], 0, 0, 0)], 0.9)[-1]
    assert none.met is False  # nothing was shown


def test_the_overlap_is_what_two_distributions_share() -> None:
    first, second = (np.log(np.array(p, np.float32)) for p in ([0.5, 0.5], [0.2, 0.8]))
    assert acceptance.overlap(first, second, {"temperature": 1.0}) == pytest.approx(0.7, abs=1e-5)


def test_all_is_counted_over_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "_RESULTS", 3)
    seen: list[Any] = []
    own = acceptance.rows_of

    def watched(*arguments: Any) -> Any:
        seen.append(arguments[2])
        return own(*arguments)

    monkeypatch.setattr(acceptance, "rows_of", watched)
    pair = batch.load_pair()
    routed = functools.partial(batch.routed_pair, max_think_tokens=80)
    section = acceptance.accepted_beside_bound(pair, routed, batch.prompts_of(pair, 5))
    assert [len(results) for results in seen] == [3, 3]
    for results in seen:
        assert all(own.trace.answer_tokens == 0 for own in results)
        places = [len(step.drafted) for own in results for step in own.trace.steps]
        assert sum(places) == sum(own.counts["small"].accepted for own in results) > 0
    held, bound, passes = section.rows[:3]
    assert held.value is not None
    assert bound.value is not None
    assert held.value == pytest.approx(bound.value, abs=0.1)
    assert passes.met is True
