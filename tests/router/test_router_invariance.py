"""Sequences on recorded logits: any batch order and split gives the same routes and tokens.

Every sequence has its own parameters and reaches other phases at other times, so that one batch
mixes glimpses, steps of both models and answers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

import glimprouter as gr
from recorded_sequences import FIELDS, SEQUENCES, Batches, run, whole

pytestmark = pytest.mark.device


def one_by_one(rows: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    yield from (rows[index : index + 1] for index in range(rows.size))


def backwards_in_fives(rows: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    turned = rows[::-1].copy()
    yield from (turned[start : start + 5] for start in range(0, rows.size, 5))


def shuffled(seed: int) -> Batches:
    generator = np.random.default_rng(seed)

    def batches(rows: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
        order = generator.permutation(rows)
        cuts = np.sort(generator.integers(0, rows.size + 1, 3))
        yield from (part for part in np.split(order, cuts) if part.size)

    return batches


@pytest.fixture(scope="module", params=["greedy", "sampled"])
def expected(request: pytest.FixtureRequest) -> tuple[bool, dict[str, list[bytes]]]:
    greedy = request.param == "greedy"
    return greedy, run(whole, greedy)


@pytest.mark.parametrize(
    "batches",
    [one_by_one, backwards_in_fives, shuffled(1), shuffled(2)],
    ids=["one by one", "backwards in fives", "shuffled 1", "shuffled 2"],
)
def test_any_order_and_split(
    batches: Batches, expected: tuple[bool, dict[str, list[bytes]]]
) -> None:
    greedy, want = expected
    got = run(batches, greedy)
    for field in FIELDS:
        for sequence in range(SEQUENCES):
            assert got[field][sequence] == want[field][sequence], f"{field} of {sequence}"


def test_the_recording_reaches_every_kind_of_event(
    expected: tuple[bool, dict[str, list[bytes]]],
) -> None:
    """Otherwise the comparison above would say little."""
    _, history = expected
    routes = set(b"".join(history["route"]))
    assert routes == {int(route) for route in gr.Route}
    reasons = set(b"".join(history["end_reason"]))
    wanted = {gr.EndReason.DELIMITER, gr.EndReason.CAP, gr.EndReason.BUDGET, gr.EndReason.THINK_END}
    assert {int(reason) for reason in wanted | {gr.EndReason.ANSWER_BUDGET}} <= reasons
    assert int(gr.Status.NAN) in b"".join(history["status"])
