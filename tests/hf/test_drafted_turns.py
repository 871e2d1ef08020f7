"""Whose turn it is where rows draft: nobody waits for ever, and what drafts are worth."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimprouter.hf.run.costs import PassCosts
from glimprouter.hf.run.drafted_turns import DraftedTurns, WaitingRow
from glimprouter.hf.sequence.drafts import Acceptance, Drafts

SIMULATION = Path(__file__).parents[2] / "benchmarks" / "turns_simulation.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("turns_simulation", SIMULATION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def fixed_costs() -> PassCosts:
    return PassCosts({"small": 1.0, "large": 4.0}, measures=False)


rows = st.lists(
    st.builds(
        WaitingRow,
        drafts=st.integers(0, 16),
        takes_more=st.booleans(),
        expected=st.floats(1, 17),
        next_chance=st.floats(0, 1),
    ),
    max_size=5,
)


@given(st.lists(st.tuples(st.integers(0, 5), rows), max_size=60), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_a_pass_has_rows_and_nobody_waits_longer_than_he_must(
    situations: list[tuple[int, list[WaitingRow]]], patience: int
) -> None:
    turns = DraftedTurns(fixed_costs(), patience)
    waited = kept_waiting = 0
    for small, large in situations:
        turn = turns.choose(small, large)
        if turn is None:
            assert not small
            assert not large
            waited = kept_waiting = 0  # nobody did
            continue
        assert all(large[place].takes_more for place in turn.drafting)
        if turn.model == "large":
            assert large
            waited = 0
            kept_waiting = kept_waiting + 1 if small else 0
        else:
            kept_waiting = 0
            assert small or turn.drafting
            waited = waited + 1 if large else 0
        assert max(waited, kept_waiting) <= patience
        turns.note(turn.model, small + len(large), small, 1.0)


def test_one_row_drafts_as_long_as_the_next_draft_is_worth_its_pass() -> None:
    turns = DraftedTurns(fixed_costs())
    drafts = Drafts(room=100)
    made = 0
    while True:
        *held, following = drafts.chances(at_start=made == 0)
        row = WaitingRow(len(drafts), drafts.takes_more(16), 1 + sum(held), following)
        turn = turns.choose(0, [row])
        assert turn is not None
        if turn.model == "large":
            break
        drafts.add(1, 1)
        made += 1
        turns.note("small", 1, 0, 0.0)
    rates = [rate_of(count) for count in range(17)]
    assert 3 <= made <= 16
    assert rates[made] > 0.95 * max(rates), "near the best length"


def rate_of(count: int) -> float:
    """Tokens over cost of a round with so many drafts, by what is assumed of them."""
    drafts = Drafts()
    for _ in range(count):
        drafts.add(1, 1)
    return (1 + sum(drafts.chances(at_start=False)[:-1])) / (count + 4.0)


def test_drafts_that_never_hold_are_given_up() -> None:
    drafts, turns = Drafts(room=100), DraftedTurns(fixed_costs())
    for _ in range(60):
        drafts.add(1, 1)
        drafts.settle(0, at_start=False)
    row = WaitingRow(0, True, 1.0, drafts.chances(at_start=False)[0])
    turn = turns.choose(0, [row])
    assert turn is not None
    assert turn.model == "large"


def test_acceptance_counts_what_was_compared() -> None:
    drafts, before = Drafts(), Acceptance()
    for _ in range(5):
        drafts.add(3, 3)
    drafts.settle(2, at_start=True)  # the third did not hold, two were not compared
    assert [a - b for a, b in zip(drafts.acceptance.tried, before.tried, strict=True)] == [2, 1]
    assert [a - b for a, b in zip(drafts.acceptance.held, before.held, strict=True)] == [1, 1]
    assert (drafts.drafted, drafts.accepted, len(drafts)) == (5, 2, 0)


def test_costs_are_measured() -> None:
    costs = PassCosts({"small": 1.0, "large": 4.0}, measures=True)
    for tokens in range(1, 60):
        costs.note("small", tokens % 13 + 1, 2.0 + 0.1 * (tokens % 13 + 1))
    assert costs.of("small", 10) == pytest.approx(3.0, rel=1e-6)
    assert costs.of("large", 10) == pytest.approx(12.0, rel=1e-6), "by the assumed ratio so far"
    costs.note("large", 5000, 99.0)  # reads prompts
    assert costs.of("large", 10) == pytest.approx(12.0, rel=1e-6)
    costs.note("large", 10, 5.0)
    assert costs.of("large", 10) == pytest.approx(5.0, rel=1e-6)
    unmeasured = fixed_costs()
    unmeasured.note("small", 10, 99.0)
    assert unmeasured.of("small", 10) == 1.0


@pytest.mark.parametrize("hard", [0.15, 0.25])
def test_what_drafts_are_worth(simulation: ModuleType, hard: float) -> None:
    """By the costs of an H200: above routing alone and speculative decoding, in every batch.

    With 15 % hard steps 16 and 64 rows reach what is wanted of a GPU (2.2 and 2.0). One row does
    not reach its 3.5: at 7.0 ms a small pass and 23.7 a large one it could only where each pass
    came nearer to the time of reading its weights. Speculative decoding is beaten by the 1.3 that
    is wanted everywhere. The other bounds are what these costs give, rounded down: a change of the
    rule that loses more than that is seen.
    """
    machine = simulation.MACHINES["H200, 4B + 32B"]
    least = {0.15: (3.1, 2.7, 2.4, 2.0), 0.25: (3.0, 2.5, 2.3, 1.8)}[hard]
    for count, wanted in zip((1, 4, 16, 64), least, strict=True):
        found = simulation.gains(machine, count, hard)
        assert found["with drafts"] >= wanted, (count, found)
        assert found["with drafts"] >= 1.1 * found["routed"], (count, found)
        assert found["with drafts"] >= 1.3 * found["speculative"], (count, found)


def test_nobody_waits_longer_than_the_bound_in_a_batch(simulation: ModuleType) -> None:
    machine = simulation.MACHINES["CPU, demo pair"]
    run = simulation.Simulation(machine, simulation.rows_of(16, 0.15, 3), 3).run()
    assert 0 < run.longest_wait <= 64
