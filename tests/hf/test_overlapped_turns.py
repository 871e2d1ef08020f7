"""Whose turn it is where each model has a device of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from glimprouter.hf.run.costs import PassCosts
from glimprouter.hf.run.drafted_turns import DraftedTurns, Turn, WaitingRow
from glimprouter.hf.run.overlapped_turns import OverlappedTurns

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LIKELY = WaitingRow(drafts=1, takes_more=True, expected=1.9, next_chance=0.95)
ENDED = WaitingRow(drafts=3, takes_more=False, expected=3.5, next_chance=0.9)


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("two_devices_simulation")


def drafted() -> DraftedTurns:
    return DraftedTurns(PassCosts({"small": 1.0, "large": 4.0}, measures=False))


def test_the_large_model_begins_as_soon_as_rows_wait_for_it() -> None:
    turns = OverlappedTurns(None)
    assert turns.choose(5, [LIKELY]) == Turn("large", [])
    assert turns.choose(5, []) == Turn("small", [])
    assert turns.choose(0, []) is None


def test_drafts_are_made_as_on_one_device_until_it_begins() -> None:
    for rows in ([LIKELY], [ENDED], [LIKELY, ENDED] * 3):
        for small in (0, 2, 40):
            assert OverlappedTurns(drafted()).choose(small, rows) == drafted().choose(small, rows)


def test_beside_its_pass_the_small_model_goes_on_and_drafts() -> None:
    turns = OverlappedTurns(None)
    assert turns.beside(3, [LIKELY]) == Turn("small", [])
    assert turns.beside(0, [LIKELY]) is None
    turns = OverlappedTurns(drafted())
    assert turns.beside(3, [ENDED, LIKELY]) == Turn("small", [1])
    assert turns.beside(0, [LIKELY]) == Turn("small", [0])
    assert turns.beside(0, [ENDED]) is None
    assert turns.beside(0, []) is None


@pytest.mark.parametrize("machine", ["H200, 4B + 32B", "CPU, demo pair"])
def test_what_overlapping_is_predicted_to_be_worth(simulation: ModuleType, machine: str) -> None:
    """A row alone gains nothing; several gain without drafts, and lose nothing with them."""
    costs = simulation.MACHINES[machine]
    alone, several = (simulation.gains(costs, count, 0.25) for count in (1, 16))
    assert alone["routed"] == pytest.approx(1.0)
    assert 1.3 < several["routed"] < 2.0
    assert 1.05 < several["with drafts"] < 2.0
    for name, share in several.items():
        if name.endswith("busy"):
            assert 0 < share <= 1 + 1e-9
