"""StepRouter and the plain model of the algorithm (router_model.py) driven side by side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

import glimprouter as gr
from device_under_test import DEVICE, on_device
from router_model import (
    BLANK_LINE,
    CLOSE_IDS,
    DELIMITERS,
    DOT_BLANK_LINE,
    END_THINK,
    EOS,
    EOS_2,
    THINK,
    VOCABULARY,
    A,
    B,
    Expected,
    RouterModel,
    room,
)
from row_reference import entropies

pytestmark = pytest.mark.device

MAX_ROWS = 5
MAX_DRAFTS = 4
SIZE = len(VOCABULARY)
THRESHOLDS = (0.0, 0.3, 1.0, 2.0, 2.7, math.inf)
# Filters that leave one token, the largest logit.
ONE_TOKEN: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 0.3, "min_p": 1.0},
)
FAULTS = {
    gr.Status.NAN: math.nan,
    gr.Status.POSITIVE_INFINITY: math.inf,
    gr.Status.ALL_MASKED: -math.inf,
}
COMPARED = ("token", "status", "route", "phase", "end_reason", "step_index", "forced", "room")

options = st.fixed_dictionaries(
    {"sampling": st.sampled_from(ONE_TOKEN)},
    optional={
        "threshold": st.sampled_from(THRESHOLDS),
        "comparison": st.sampled_from([">", ">="]),
        "entropy_top_k": st.sampled_from([None, 1, 2, 5, 40]),
        "max_step_tokens": st.integers(1, 6),
        "max_think_tokens": st.integers(1, 30),
        "max_answer_tokens": st.integers(0, 4),
        "first_steps_large": st.integers(0, 3),
        "large_tokens": st.sampled_from([None, 1, 2, 4]),
        "answer_model": st.sampled_from(["small", "large"]),
        "repetition_guard": st.booleans(),
        "route": st.sampled_from(["auto", "auto", "small", "large", "manual"]),
    },
)
# Text and blank lines most of the time, so that steps end and repeat; anything in between.
chosen_tokens = st.one_of(
    st.sampled_from([A, B, A, DOT_BLANK_LINE, DOT_BLANK_LINE, BLANK_LINE]),
    st.integers(0, SIZE - 1).filter(lambda token: token not in (EOS, EOS_2, END_THINK)),
    st.integers(0, SIZE - 1),
)
peaks = st.sampled_from([0.25, 1.0, 2.5, 3.5, 6.0, 15.0])


def logits_for(token: int, peak: float) -> NDArray[np.float32]:
    """A row whose largest element is the token; the entropy falls with the peak."""
    row = -0.03 * np.arange(SIZE, dtype=np.float32)
    row[token] = peak
    values = entropies(row)
    for threshold in THRESHOLDS:  # the comparison is not a matter of rounding
        assert np.all(np.abs(values[1:] - threshold) > 1e-6)
    return row


class Router(RuleBasedStateMachine):
    """Every call goes to both; every answer and every counter must agree."""

    def __init__(self) -> None:
        super().__init__()
        # Markers of thinking are ordinary added tokens in many vocabularies: their text is no text.
        written = list(VOCABULARY)
        written[THINK], written[END_THINK] = b"<think>", b"</think>"
        boundary = gr.StepBoundary(
            written, DELIMITERS, [THINK], [END_THINK], [EOS, EOS_2], CLOSE_IDS
        )
        config = gr.RouterConfig(
            max_step_tokens=8, max_think_tokens=40, max_answer_tokens=5, temperature=0.0
        )
        self.router = gr.StepRouter(boundary, config, max_sequences=MAX_ROWS, device=DEVICE)
        self.model = RouterModel(config)
        self.out = self.router.outputs(MAX_ROWS * (MAX_DRAFTS + 1))
        self.saved: list[tuple[bytes, Any]] = []

    def free(self) -> bool:
        return len(self.model.sequences) < MAX_ROWS

    def pick_row(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model.sequences)), label="row")

    @rule(chosen=options)
    def open(self, chosen: dict[str, Any]) -> None:
        overrides = dict(chosen)
        overrides.update(overrides.pop("sampling"))
        if not self.free():
            with pytest.raises(RuntimeError, match="rows are in use"):
                self.router.open(**overrides)
            return
        row = self.router.open(**overrides)
        assert row not in self.model.sequences
        self.model.open(row, overrides)

    @rule(data=st.data(), model=st.sampled_from(["small", "small", "large"]), wide=st.booleans())
    def step(self, data: st.DataObject, model: str, wide: bool) -> None:
        for _ in range(data.draw(st.integers(1, 4), label="calls")):
            waiting = self.model.pending(model)
            if not waiting:
                return
            rows = self.draw_rows(data, waiting)
            expected, logits = [], []
            for row in rows:
                values, fault = self.draw_row(data, data.draw(chosen_tokens))
                if fault is None:
                    expected.append(self.model.step(row, values))
                else:
                    expected.append(self.model.invalid(row, fault))
                logits.append(values)
            batch = np.stack(logits)
            if wide:  # what lies beyond the vocabulary is not looked at
                batch = np.concatenate([batch, np.full((len(rows), 3), 99, np.float32)], axis=1)
            self.router.step(model, on_device(batch), rows, self.out)
            self.compare_outputs(rows, expected)

    def draw_row(
        self, data: st.DataObject, token: int
    ) -> tuple[NDArray[np.float32], gr.Status | None]:
        """Logits for this token, or with a fault."""
        values = logits_for(token, data.draw(peaks))
        drawn = data.draw(st.integers(0, 11), label="fault")
        if drawn not in FAULTS:
            return values, None
        fault = gr.Status(drawn)
        values[slice(None) if fault == gr.Status.ALL_MASKED else drawn] = FAULTS[fault]
        return values, fault

    def draw_drafts(self, data: st.DataObject, row: int, most: int) -> list[int]:
        size = data.draw(st.integers(0, most), label="drafts")
        return [data.draw(chosen_tokens) for _ in range(size)]

    def draw_rows(self, data: st.DataObject, waiting: list[int]) -> list[int]:
        rows = data.draw(st.permutations(waiting), label="order")
        return list(rows[: data.draw(st.integers(1, len(rows)), label="count")])

    @rule(data=st.data(), model=st.sampled_from(["small", "large", "large"]))
    def verify(self, data: st.DataObject, model: str) -> None:
        waiting = self.model.pending(model)
        if not waiting:
            return
        rows = self.draw_rows(data, waiting)
        counts, drafts, batch, expected, taken = [], [], [], [], []
        for row in rows:
            most = room(self.model.sequences[row]) - 1
            own = self.draw_drafts(data, row, min(most, MAX_DRAFTS))
            logits, meant = [], []
            for token in [*own, data.draw(chosen_tokens)]:
                differs = data.draw(st.integers(0, 5), label="differs") == 0
                values, fault = self.draw_row(data, data.draw(chosen_tokens) if differs else token)
                logits.append(values)
                meant.append(values if fault is None else fault)
            said = self.model.verify(row, meant, own)
            taken.append(sum(one.token >= 0 for one in said))
            counts.append(len(own))
            drafts += own
            batch += logits
            expected += said
        logits_there = on_device(np.stack(batch))
        assert (
            self.router.verify(model, logits_there, rows, counts, drafts, self.out).tolist()
            == taken
        )
        self.compare_outputs(np.repeat(rows, np.array(counts) + 1).tolist(), expected)

    @rule(data=st.data(), writer=st.sampled_from(["small", "large", "large"]))
    def draft(self, data: st.DataObject, writer: str) -> None:
        waiting = self.model.pending(writer)
        if not waiting:
            return
        rows = self.draw_rows(data, waiting)
        counts, drafts, batch, expected = [], [], [], []
        for row in rows:
            most = room(self.model.sequences[row]) - 1
            own = self.draw_drafts(data, row, min(most, MAX_DRAFTS))
            values, fault = self.draw_row(data, data.draw(chosen_tokens))
            expected.append(self.model.draft(row, values if fault is None else fault, own))
            counts.append(len(own))
            drafts += own
            batch.append(values)
        model = "small" if writer == "large" else "large"
        before = [self.router.save(row) for row in rows]
        self.router.draft(model, on_device(np.stack(batch)), rows, counts, drafts, self.out)
        self.compare_outputs(rows, expected)
        assert [self.router.save(row) for row in rows] == before

    @precondition(lambda self: self.model.awaiting_decision())
    @rule(data=st.data(), model=st.sampled_from(["small", "large"]))
    def decide(self, data: st.DataObject, model: str) -> None:
        rows = self.draw_rows(data, self.model.awaiting_decision())
        self.router.decide(model, rows, self.out)
        self.compare_outputs(rows, [self.model.decide(row, model) for row in rows])

    @precondition(lambda self: self.model.unseen())
    @rule(data=st.data())
    def decide_unseen(self, data: st.DataObject) -> None:
        """Of the manual route, without a glimpse: by the large model only."""
        rows = self.draw_rows(data, self.model.unseen())
        with pytest.raises(ValueError, match="no decision to make"):
            self.router.decide("small", rows, self.out)
        self.router.decide("large", rows, self.out)
        self.compare_outputs(rows, [self.model.decide(row, "large") for row in rows])

    @precondition(lambda self: self.model.sequences and self.free())
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        row = self.pick_row(data)
        child = self.router.fork(row)
        assert child not in self.model.sequences
        assert self.router.state(child)["substream"] != self.router.state(row)["substream"]
        self.model.copy(row, child)

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        row = self.pick_row(data)
        possible = st.sampled_from(list(self.model.rewindable(row)))
        anything = st.integers(-1, self.model.sequences[row].position + 1)
        count = data.draw(st.one_of(possible, possible, anything), label="count")
        if self.model.rewind(row, count):
            self.router.rewind(row, count)
            return
        before = self.router.save(row)
        with pytest.raises(ValueError, match="cannot rewind"):
            self.router.rewind(row, count)
        assert self.router.save(row) == before

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def end_thinking(self, data: st.DataObject) -> None:
        row = self.pick_row(data)
        before = self.router.save(row)
        if self.model.end_thinking(row):
            assert self.router.end_thinking(row) == len(CLOSE_IDS)
            return
        with pytest.raises(ValueError, match="cannot end the thinking"):
            self.router.end_thinking(row)
        assert self.router.save(row) == before

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        row = self.pick_row(data)
        self.saved.append((self.router.save(row), self.model.snapshot(row)))

    @precondition(lambda self: self.saved and self.free())
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        state, snapshot = data.draw(st.sampled_from(self.saved), label="saved")
        self.model.restore(self.router.load(state), snapshot)

    @precondition(lambda self: len(self.model.sequences) > 2)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        row = self.pick_row(data)
        self.router.close(row)
        self.model.close(row)
        with pytest.raises(IndexError, match=f"row {row} is not open"):
            self.router.state(row)

    def compare_outputs(self, rows: list[int], expected: list[Expected]) -> None:
        for i, one in enumerate(expected):
            actual = {name: int(getattr(self.out, name)[i]) for name in COMPARED}
            assert actual == {name: int(getattr(one, name)) for name in COMPARED}, rows[i]
            np.testing.assert_allclose(self.out.entropy[i], one.entropy, rtol=3e-6, atol=3e-6)

    @invariant()
    def same_state(self) -> None:
        assert self.router.rows.tolist() == sorted(self.model.sequences)
        for model in ("small", "large"):
            assert self.router.pending(model).tolist() == self.model.pending(model)
        for row, sequence in self.model.sequences.items():
            state = self.router.state(row)
            for name in (
                *("phase", "position", "step_index", "step_tokens"),
                *("think_tokens", "answer_tokens"),
            ):
                assert state[name] == getattr(sequence, name), (row, name)
            sums = state["step_logprob"], state["step_entropy"]
            np.testing.assert_allclose(sums, sequence.sums, rtol=1e-5, atol=1e-5)


Router.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestRouterAgainstModel = Router.TestCase
