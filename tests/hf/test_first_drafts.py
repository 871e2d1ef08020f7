"""Drafts behind steps that are handed to the large model: made where they pay, as all others."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hf_pairs
from glimprouter.hf.run.costs import PassCosts
from glimprouter.hf.run.drafted_turns import DraftedTurns, WaitingRow
from glimprouter.hf.run.drafting import Drafting
from glimprouter.hf.run.loop import Loop
from glimprouter.hf.sequence.record import SequenceRecord


class Line(PassCosts):
    """Costs that are known, tokens included."""

    def __init__(self, small: tuple[float, float], large: tuple[float, float]) -> None:
        super().__init__({"small": small[0], "large": large[0]}, measures=False)
        self.lines = {"small": small, "large": large}

    def line(self, model: str) -> tuple[float, float]:
        return self.lines[model]


class HandOff(NamedTuple):
    """A sequence comes to wait for the large model.

    Attributes:
        chance: That the first draft holds, as far as is known.
        steps: Before it.
        drafted: Whether there is a first draft.
    """

    chance: float
    steps: int
    drafted: bool


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[HandOff]:
    """All that happen, where a token more costs a fourth of a pass."""
    seen: list[HandOff] = []
    own = Loop._worth_first_drafts

    def watched(loop: Loop, records: list[SequenceRecord]) -> list[int]:
        worth = own(loop, records)
        for place, record in enumerate(records):
            (chance,) = record.drafts.chances(at_start=record.at_step_start)
            seen.append(HandOff(chance, len(record.step_starts), place in worth))
        return worth

    monkeypatch.setattr(Loop, "_worth_first_drafts", watched)
    monkeypatch.setattr(Drafting, "costs", lambda _: Line((1.0, 0.1), (4.0, 1.0)))
    return seen


@cache
def disagreeing_pair() -> hf_pairs.Pair:
    """One writes even ids, the other odd ones."""
    pair = hf_pairs.random_pair("llama")
    models = [copy.deepcopy(model) for model in (pair.small, pair.large)]
    with torch.no_grad():
        for parity, model in enumerate(models):
            model.lm_head.bias[1 - parity :: 2] -= 100.0
    return dataclasses.replace(pair, small=models[0], large=models[1])


def written(results: list[Any]) -> list[list[int]]:
    return [result.token_ids for result in results]


chances = st.floats(0, 1)
waiting = st.builds(
    WaitingRow,
    drafts=st.integers(0, 4),
    takes_more=st.booleans(),
    expected=st.floats(1, 5),
    next_chance=chances,
)
fresh = st.builds(
    WaitingRow,
    drafts=st.just(0),
    takes_more=st.just(True),
    expected=st.just(1.0),
    next_chance=chances,
)


@given(st.lists(fresh, min_size=1, max_size=6), st.lists(waiting, max_size=6), st.floats(0, 2))
def test_a_first_draft_costs_a_token_of_the_large_model_alone(
    handed: list[WaitingRow], others: list[WaitingRow], slope: float
) -> None:
    """Whatever a token of the small model costs: its pass was computed anyway."""
    rows = [*handed, *others]
    rate = sum(row.expected for row in rows) / (4.0 + slope * sum(1 + row.drafts for row in rows))
    want = [place for place, row in enumerate(handed) if row.next_chance > rate * slope]
    for small in ((1.0, 0.0), (1.0, 50.0)):
        turns = DraftedTurns(Line(small, (4.0, slope)))
        assert turns.worth_handing_over(handed, others) == want
    other = DraftedTurns(Line((1.0, 50.0), (4.0, slope)))
    assert other.worth_drafting(rows) == []  # those take a token of both


def test_first_drafts_that_never_hold_are_given_up() -> None:
    turns = DraftedTurns(Line((1.0, 0.1), (4.0, 1.0)))
    for chance, worth in ((0.75, [0]), (0.3, [0]), (0.15, []), (0.0, [])):
        row = WaitingRow(0, True, 1.0, chance)
        assert turns.worth_handing_over([row], []) == worth, chance


@pytest.mark.both_engines
def test_a_pair_that_never_agrees_does_without(handed: list[HandOff]) -> None:
    pair = disagreeing_pair()
    options = {"threshold": 0.0, "max_think_tokens": 150, "max_step_tokens": 3}
    want = pair.routed(**options).generate(pair.prompts[:1], seeds=1)
    assert handed == []
    got = pair.routed(drafts=4, **options).generate(pair.prompts[:1], seeds=1)
    assert written(got) == written(want)
    late = [one for one in handed if one.chance <= 0.2]  # the price of a token, in tokens
    assert len(late) > 20
    assert len(late) > len(handed) / 3
    tried = [one for one in late if one.drafted]
    assert all(one.steps % 16 == 0 for one in tried), tried
    assert 0 < len(tried) <= len(late) / 8


@pytest.mark.both_engines
def test_a_pair_that_agrees_has_them(handed: list[HandOff]) -> None:
    pair = hf_pairs.trained_pair()
    results = pair.routed(drafts=8, max_think_tokens=120).generate(pair.prompts)
    assert len(handed) > 5
    assert sum(one.drafted for one in handed) > 0.8 * len(handed)
    assert sum(result.counts["small"].accepted for result in results) > len(handed)


def test_nobody_is_shut_out_for_ever(handed: list[HandOff]) -> None:
    """What is known of a sequence may be wrong by now: drafts that hold count again."""
    pair = hf_pairs.trained_pair()
    options = {"threshold": 0.0, "max_think_tokens": 400, "max_step_tokens": 4}
    run = pair.routed(drafts=1, **options).stream(pair.prompts[:1])
    run.step()
    acceptance = run._sequences.record(0).drafts.acceptance
    acceptance.tried[True] += 12
    before = list(acceptance.tried)
    for _ in run:
        pass
    assert acceptance.tried[True] > before[True]
    assert any(one.drafted for one in handed)
