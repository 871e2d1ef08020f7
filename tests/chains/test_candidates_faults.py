"""Drafts of steps that fail, that have nothing to write, or that another thread comes between."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

import hf_pairs
from glimprouter.chains import ArbitrageOracle, SpecCoT, write_with_candidates
from glimprouter.hf import Result, RoutedModel
from hf_runs import sector_bytes
from hf_watch import poisoned_at

pytestmark = pytest.mark.both_engines


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_chain_ends_with_the_error_of_its_draft(name: str) -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.8, on_invalid="end", max_sequences=4)
    prompts = pair.prompts[:1]
    with poisoned_at(getattr(pair, name), len(prompts[0]) + 4, math.nan):
        rule = ArbitrageOracle(lambda question, steps, text: 1.0)
        (got,) = write_with_candidates(model, prompts, rule)
    if name == "small":
        assert got.result.trace.error is not None
        assert "the small model gave logits with a fault (nan)" in got.result.trace.error
    else:  # its step is read at another place than its draft
        assert got.result.trace.end_reason in ("answer_budget", "error")


def test_a_prompt_that_has_closed_the_thinking_is_answered() -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.8)
    prompt = [*pair.prompts[0], *model.boundary.think_end_ids]
    (want,) = model.generate([prompt])
    (got,) = write_with_candidates(model, [prompt], SpecCoT(2))
    assert not got.choices
    assert got.result.trace.answer == want.trace.answer
    assert got.result.trace.answer


def test_another_thread_has_the_pairs_own_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.8)
    want = [result.token_ids for result in model.generate(pair.prompts[:2])]
    seen: list[list[Result]] = []
    stream = RoutedModel.stream

    def beside(own: RoutedModel, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        if not prompts:
            other = threading.Thread(target=lambda: seen.append(model.generate(pair.prompts[:2])))
            other.start()
            other.join()
        return stream(own, prompts, *args, **kwargs)

    monkeypatch.setattr(RoutedModel, "stream", beside)
    write_with_candidates(model, pair.prompts[:1], SpecCoT(2))
    assert [result.token_ids for result in seen[0]] == want
    assert [result.trace.policy for result in seen[0]] == [None, None]


@pytest.mark.parametrize("sectors", [6, 7])
def test_a_held_sequence_makes_room_for_others(
    sectors: int, engine_under_test: str, pages_of_16: None
) -> None:
    if engine_under_test != "paged":
        pytest.skip("gathering takes the memory that it needs")
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.8, max_think_tokens=50, max_answer_tokens=8)
    prompts = [pair.prompts[2]] * 2
    want = [result.token_ids for result in model.generate(prompts)]
    model.kv_memory_bytes = sectors * sector_bytes(model)
    run = model.stream(prompts)
    while len(run.generated(0)) < 45:
        run.step()
    run.hold(0)
    ended = {event.sequence: event.result for event in run if event.result is not None}
    assert ended[1].token_ids == want[1]
    run.go_on(0)
    ended |= {event.sequence: event.result for event in run if event.result is not None}
    assert ended[0].token_ids == want[0]
    assert not run.sequences
