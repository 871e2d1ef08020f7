"""States in slots against plain lists of what they have seen, short of memory."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from glimprouter.hf.state.form import StateForm, StateTensor
from glimprouter.hf.state.sequences import PackedState, SequenceStates, StateMove
from glimprouter.hf.state.slots import StateSlots

CPU = torch.device("cpu")
TENSORS = (
    StateTensor(0, "sum", None, (2,), torch.int64, CPU),
    StateTensor(1, "parts", 0, (3, 1), torch.float64, CPU),
)
FORM = StateForm((2,), TENSORS, (), ())
SLOTS, SNAPSHOTS = 5, 2


def state_of(tokens: list[int]) -> list[torch.Tensor]:
    """A state that says which tokens it has seen, in which order: one row of each tensor."""
    value = 0
    for token in tokens:
        value = (value * 31 + token) % 1_000_003
    return [
        torch.tensor([[len(tokens), value]]),
        torch.tensor([[[float(value)], [float(sum(tokens))], [float(len(tokens))]]]).double(),
    ]


def advance(states: SequenceStates, sequence: int, text: list[int], *keep: int) -> None:
    """One pass over one sequence, which has seen the text then."""
    count = len(text) - states.length(sequence)
    with states.moving([sequence], [len(text)], count, keep) as move:
        states.write(move, state_of(text))


class States(RuleBasedStateMachine):
    """Passes, forks, cuts, preemptions: a state has seen what its sequence has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.states = SequenceStates(StateSlots(FORM, SLOTS), SNAPSHOTS)
        self.texts: dict[int, list[int]] = {}  # what each has computed
        self.ends: dict[int, list[int]] = {}  # where its passes ended
        self.packed: list[tuple[PackedState, list[int], list[int]]] = []
        self.count = 0

    def new(self) -> int:
        self.count += 1
        return self.count

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.texts)), label="sequence")

    @precondition(lambda self: not self.states.is_full)
    @rule()
    def open(self) -> None:
        sequence = self.new()
        self.states.open(sequence)
        self.texts[sequence], self.ends[sequence] = [], []

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), kept=st.booleans(), more=st.integers(1, 70))
    def advance(self, data: st.DataObject, kept: bool, more: int) -> None:
        """One pass over some sequences, all of them begun or none."""
        first = self.pick(data)
        begun = bool(self.texts[first])
        fit = [s for s in sorted(self.texts) if bool(self.texts[s]) == begun]
        chosen = data.draw(st.permutations(fit))[: data.draw(st.integers(1, len(fit)))]
        lengths = [len(self.texts[sequence]) + more for sequence in chosen]
        keep = chosen[:1] if kept else ()
        with suppress(MemoryError), self.states.moving(chosen, lengths, more, keep):
            raise MemoryError  # nothing has changed
        with self.states.moving(chosen, lengths, more, keep) as move:
            self.play(move, chosen, begun, more)

    @precondition(lambda self: any(self.texts.values()))
    @rule(data=st.data(), more=st.integers(1, 70), kept=st.booleans())
    def break_off(self, data: st.DataObject, more: int, kept: bool) -> None:
        """While it writes: what it wrote over is lost, and computed again; nothing else is."""
        fit = sorted(sequence for sequence, text in self.texts.items() if text)
        chosen = data.draw(st.permutations(fit))[: data.draw(st.integers(1, len(fit)))]
        lengths = [len(self.texts[sequence]) + more for sequence in chosen]
        keep = chosen[:1] if kept else ()
        with suppress(MemoryError), self.states.moving(chosen, lengths, more, keep) as move:
            self.states.write(move, [torch.cat([row] * len(chosen)) for row in state_of([13])])
            raise MemoryError
        lost = {s for s, slot in zip(chosen, move.sources, strict=True) if slot in move.targets}
        for sequence in chosen:
            text = self.texts[sequence]
            assert (self.states.length(sequence) < len(text)) == (sequence in lost)
            self.catch_up(sequence, text)

    def catch_up(self, sequence: int, text: list[int]) -> None:
        """Computes again what a state has lost."""
        length = self.states.go_on(sequence, len(text))
        for end in self.states.ends(sequence, len(text)) if length < len(text) else ():
            advance(self.states, sequence, text[:end])

    def play(self, move: StateMove, chosen: list[int], begun: bool, more: int) -> None:
        """What a pass does with states."""
        assert len(set(move.targets)) == len(chosen)
        before = self.states.gather(move)
        assert (before is not None) == begun
        if before is not None:
            for row, sequence in enumerate(chosen):
                for own, want in zip(before, state_of(self.texts[sequence]), strict=True):
                    assert own[row].equal(want[0])
        for sequence in chosen:
            self.texts[sequence] += [self.new() % 97 for _ in range(more)]
            length = len(self.texts[sequence])
            assert self.states.ends(sequence, length) == [length], "one pass, as it is not again"
            self.ends[sequence].append(length)
        rows = [state_of(self.texts[sequence]) for sequence in chosen]
        after = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        self.states.write(move, after)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        """What lies behind the state that is left is computed again, in the same pieces."""
        sequence = self.pick(data)
        text = self.texts[sequence]
        snapshots = [length for length, _ in self.states._held[sequence].snapshots]
        anywhere = st.integers(0, len(text))
        somewhere = st.sampled_from(snapshots) | anywhere if snapshots else anywhere
        computed = data.draw(somewhere, label="computed")
        before = self.states.recomputed(sequence)
        kept = self.states.go_on(sequence, computed)
        assert kept <= computed
        assert kept == computed or computed < len(text)
        assert self.states.recomputed(sequence) == before + computed - kept
        self.texts[sequence] = text[:kept]
        known = self.ends[sequence] = [end for end in self.ends[sequence] if end <= computed]
        again = self.states.ends(sequence, computed) if computed > kept else []
        assert again == sorted({end for end in [*known, computed] if end > kept})
        if again:
            self.ends[sequence] = sorted({*known, computed})
        for end in again:
            self.texts[sequence] = text[:end]
            advance(self.states, sequence, text[:end])
        assert self.texts[sequence] == text[:computed]

    @precondition(lambda self: self.texts and not self.states.is_full)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        sequence, twin = self.pick(data), self.new()
        self.states.fork(sequence, twin)
        self.texts[twin], self.ends[twin] = list(self.texts[sequence]), list(self.ends[sequence])

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), named=st.booleans())
    def preempt(self, data: st.DataObject, named: bool) -> None:
        sequence = self.pick(data)
        packed = self.states.pack(sequence)
        if named:  # as in a file
            length = len(self.texts[sequence])
            with pytest.raises(ValueError, match="not one of this model"):
                PackedState.from_named(packed.named(), FORM, length + 1)
            packed = PackedState.from_named(packed.named(), FORM, length)
        self.states.close(sequence)
        self.packed.append((packed, self.texts.pop(sequence), self.ends.pop(sequence)))

    @precondition(lambda self: self.packed and not self.states.is_full)
    @rule()
    def take_back(self) -> None:
        packed, text, ends = self.packed.pop()
        sequence = self.new()
        self.states.open(sequence, packed)
        self.texts[sequence], self.ends[sequence] = text, ends

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.states.close(sequence)
        del self.texts[sequence]

    @invariant()
    def every_slot_is_accounted_for(self) -> None:
        used: dict[int, int] = {}
        for sequence, held in self.states._held.items():
            assert held.length == len(self.texts[sequence])
            assert len(held.snapshots) <= SNAPSHOTS
            lengths = [length for length, _ in held.snapshots]
            assert lengths == sorted(set(lengths))
            assert all(length <= held.length for length in lengths)
            for slot in (held.slot, *(slot for _, slot in held.snapshots)):
                if slot is not None:
                    used[slot] = used.get(slot, 0) + 1
        slots = self.states.slots
        assert slots.num_free == SLOTS - len(used)
        assert [slots._users[slot] for slot in range(SLOTS)] == [
            used.get(slot, 0) for slot in range(SLOTS)
        ]

    @invariant()
    def snapshots_have_seen_what_they_say(self) -> None:
        for sequence, held in self.states._held.items():
            for length, slot in held.snapshots:
                want = state_of(self.texts[sequence][:length])
                assert all(
                    own.equal(right)
                    for own, right in zip(self.states.slots.gather([slot]), want, strict=True)
                )


TestStates = States.TestCase
TestStates.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_rows_with_and_without_tokens_do_not_mix() -> None:
    states = SequenceStates(StateSlots(FORM, 2), 0)
    states.open(0)
    states.open(1)
    advance(states, 0, [5])
    with (
        pytest.raises(ValueError, match="do not go into one pass"),
        states.moving([0, 1], [2, 1], 1) as move,
    ):
        states.gather(move)
    assert (states.length(0), states.length(1), states.slots.num_free) == (1, 0, 1)


def test_a_pass_goes_on_from_where_its_states_are() -> None:
    """A state that lags behind, or leads, is no state of this pass."""
    states = SequenceStates(StateSlots(FORM, 2), 0)
    states.open(0)
    advance(states, 0, [5, 6, 7])
    for length in (3, 5):
        message = rf"has seen 3 tokens, and the pass goes on from {length - 1}"
        with pytest.raises(RuntimeError, match=message), states.moving([0], [length], 1):
            pass
    assert states.length(0) == 3


def test_a_place_has_one_snapshot() -> None:
    """Back there and on again: the older snapshots stay."""
    states = SequenceStates(StateSlots(FORM, 9), SNAPSHOTS)
    states.open(0)
    for length in (3, 5, 8):
        advance(states, 0, list(range(length)), 0)
    for _ in range(3):
        assert states.go_on(0, 5) == 5
        advance(states, 0, list(range(8)), 0)
    assert states.go_on(0, 4) == 3
    assert states.recomputed(0) == 1


def test_a_long_text_has_snapshots_on_the_way() -> None:
    """No step begins there: an answer."""
    states = SequenceStates(StateSlots(FORM, 9), SNAPSHOTS)
    states.open(0)
    for length in range(1, 200):
        advance(states, 0, list(range(length)))
    assert states.go_on(0, 180) in range(180 - 64, 181)


def test_a_state_that_grows_is_refused() -> None:
    """It is no state of fixed size: a row could not hold it."""

    class Layer:
        sum: Any = torch.zeros(1, 5)

    with pytest.raises(ValueError, match=r"layer 0 has the shape \[1, 5\].*it was\s\[1, 2\]"):
        TENSORS[0].of([Layer()])
