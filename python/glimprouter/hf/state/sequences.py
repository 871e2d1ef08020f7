"""The states of the sequences in flight: where each is, and where it can go back to."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from glimprouter.hf.state.ends import SNAPSHOT_SPAN, PassEnds
from glimprouter.hf.state.form import StateForm
from glimprouter.hf.state.slots import StateSlots

_ENDS = "ends"  # name in what is saved


@dataclass
class _Held:
    """What is held of one sequence.

    Attributes:
        slot: Of its state; None before the first token.
        length: Tokens that the state has seen.
        ends: Where its passes ended.
        snapshots: Slots of earlier lengths, with these.
        recomputed: Tokens that were computed again, for want of a snapshot at the right place.
    """

    slot: int | None = None
    length: int = 0
    ends: PassEnds = field(default_factory=PassEnds)
    snapshots: deque[tuple[int, int]] = field(default_factory=deque)
    recomputed: int = 0


@dataclass
class PackedState:
    """A sequence's state in host memory.

    Attributes:
        length: Tokens that it has seen.
        ends: As above.
        recomputed: As above.
        states: For each tensor of the form, ``[1 + snapshots, ...]``, the newest first; empty
            before the first token.
        lengths: Tokens that each of the snapshots has seen, the newest first.
    """

    length: int
    ends: list[int]
    recomputed: int = 0
    states: list[torch.Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def named(self) -> dict[str, torch.Tensor]:
        """Without the snapshots, as tensors with names."""
        return {
            _ENDS: torch.tensor([self.length, *self.ends]),
            **{str(i): state[:1].contiguous() for i, state in enumerate(self.states)},
        }

    @classmethod
    def from_named(cls, named: dict[str, torch.Tensor], form: StateForm, least: int) -> PackedState:
        """The other way round.

        Args:
            named: What :meth:`named` gave.
            form: Of the model.
            least: Tokens that it must have seen.

        Raises:
            ValueError: It is of another form, or has seen fewer.
        """
        length, *ends = named[_ENDS].tolist() if _ENDS in named else [0]
        states = [named[str(i)] for i in range(len(named) - 1) if str(i) in named]
        own = [(tuple(state.shape[1:]), state.dtype) for state in states]
        if length < least or (
            own != [(tensor.shape, tensor.dtype) for tensor in form.tensors] if length else states
        ):
            raise ValueError("the saved state is not one of this model")
        return cls(length, ends, 0, states)


@dataclass
class StateMove:
    """A pass over the states of some sequences.

    Attributes:
        sources: Slots that it reads, ``[B]``; None where a sequence has no token yet.
        targets: Slots that it writes, once it has read all, ``[B]``: distinct.
        kept: Whether the source becomes a snapshot, ``[B]``.
        writing: Whether the targets may hold what is not whole yet: a source that is one of them
            is lost when the pass fails now.
    """

    sources: list[int | None]
    targets: list[int] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    writing: bool = False


class SequenceStates:
    """The states of a model's sequences, by the numbers that the sequences have elsewhere.

    No slot is written that another sequence, or a snapshot, shares: forks and snapshots copy
    nothing, and a pass that fails leaves everything as it was. One that is broken off while it
    writes loses the states that it wrote over: they go back to a snapshot.
    """

    def __init__(self, slots: StateSlots, num_snapshots: int) -> None:
        """No sequences.

        Args:
            slots: Memory; snapshots give theirs up when sequences need it.
            num_snapshots: Snapshots of a sequence at most, >= 0; the newest are kept.
        """
        self.slots = slots
        self._num_snapshots = num_snapshots
        self._held: dict[int, _Held] = {}

    @property
    def is_full(self) -> bool:
        """Whether there is no memory for one sequence more."""
        return len(self._held) == self.slots.num_slots

    def open(self, sequence: int, packed: PackedState | None = None) -> None:
        """A sequence, with what it had before or without tokens; not when it is full."""
        held = _Held()
        if packed is not None:
            held = _Held(length=packed.length, ends=PassEnds(packed.ends))
            held.recomputed = packed.recomputed
            rows = [self._take() for _ in packed.states[:1]]
            rows += [self.slots.take() for _ in packed.lengths[: self.slots.num_free]]
            if rows:
                self.slots.write(
                    rows,
                    [state[: len(rows)].to(t.device) for state, t in self._placed(packed.states)],
                )
                held.slot = rows[0]
                pairs = zip(packed.lengths, rows[1:], strict=False)
                held.snapshots.extendleft(pairs)
        self._held[sequence] = held

    def _placed(self, states: Sequence[torch.Tensor]) -> zip:  # type: ignore[type-arg]
        return zip(states, self.slots.form.tensors, strict=True)

    def pack(self, sequence: int) -> PackedState:
        """All of it, for :meth:`open`; it goes on here."""
        held = self._held[sequence]
        if held.slot is None:
            return PackedState(held.length, list(held.ends), held.recomputed)
        snapshots = list(reversed(held.snapshots))
        states = self.slots.gather([held.slot, *(slot for _, slot in snapshots)])
        return PackedState(
            held.length,
            list(held.ends),
            held.recomputed,
            [state.cpu() for state in states],
            [length for length, _ in snapshots],
        )

    def close(self, sequence: int) -> None:
        """Frees what it held."""
        held = self._held.pop(sequence)
        for slot in (held.slot, *(slot for _, slot in held.snapshots)):
            if slot is not None:
                self.slots.release(slot)

    def fork(self, source: int, twin: int) -> None:
        """A sequence more with the same past; not when it is full."""
        held = self._held[source]
        self._held[twin] = _Held(
            None if held.slot is None else self.slots.share(held.slot),
            held.length,
            PassEnds(held.ends),
            deque((length, self.slots.share(slot)) for length, slot in held.snapshots),
        )

    def go_on(self, sequence: int, computed: int) -> int:
        """Goes back to the last state within ``computed`` tokens.

        Returns:
            How many tokens that has seen: the others of these have to be computed again.
        """
        held = self._held[sequence]
        if held.length > computed:
            self._go_back(held, computed)
            held.ends.cut(computed)
        return held.length

    def _go_back(self, held: _Held, most: int) -> None:
        """Gives a state up for the last snapshot of at most so many tokens, or for none."""
        while held.snapshots and held.snapshots[-1][0] > most:
            self.slots.release(held.snapshots.pop()[1])
        if held.slot is not None:
            self.slots.release(held.slot)
        held.length, held.slot = 0, None
        if held.snapshots:
            held.length, kept = held.snapshots[-1]
            held.slot = self.slots.share(kept)
        held.recomputed += most - held.length

    def ends(self, sequence: int, length: int) -> list[int]:
        """Where the passes end that bring it to ``length`` tokens; several only again."""
        held = self._held[sequence]
        return held.ends.up_to(held.length, length)

    def length(self, sequence: int) -> int:
        """Tokens that its state has seen."""
        return self._held[sequence].length

    def recomputed(self, sequence: int) -> int:
        """Tokens that were computed again, for want of a snapshot."""
        return self._held[sequence].recomputed

    def gather(self, move: StateMove) -> list[torch.Tensor] | None:
        """Copies of the states that a pass reads, ``[B, ...]`` each; None where none has a token.

        Raises:
            ValueError: Some have tokens and some have not.
        """
        begun = [slot for slot in move.sources if slot is not None]
        if len(begun) not in (0, len(move.sources)):
            raise ValueError("sequences with tokens and without do not go into one pass")
        return self.slots.gather(begun) if begun else None

    def write(self, move: StateMove, states: Sequence[torch.Tensor]) -> None:
        """Puts the states behind a pass, ``[B, ...]`` each, where they belong."""
        move.writing = True
        self.slots.write(move.targets, states)

    @contextmanager
    def moving(
        self,
        sequences: Sequence[int],
        lengths: Sequence[int],
        count: int,
        keep: Collection[int] = (),
    ) -> Iterator[StateMove]:
        """Around a pass that reads the states of sequences and writes those behind it.

        When it fails nothing has changed, but that snapshots may have given up their memory; and
        what it was writing over is given up.

        Args:
            sequences: Of the pass, ``[B]``.
            lengths: Tokens that each will have seen, ``[B]``.
            count: Tokens of each in the pass.
            keep: Sequences whose present state becomes a snapshot. So does one that is far behind
                the last snapshot.

        Raises:
            RuntimeError: A state is not the one that the pass goes on from.
        """
        held_ones = [self._held[sequence] for sequence in sequences]
        for sequence, held, length in zip(sequences, held_ones, lengths, strict=True):
            if held.length + count != length:
                raise RuntimeError(
                    f"the state of sequence {sequence} has seen {held.length} tokens, and the pass"
                    f" goes on from {length - count}"
                )
        move = self._plan(sequences, keep)
        try:
            yield move
        except BaseException:
            self._call_off(held_ones, move)
            raise
        rows = zip(held_ones, lengths, move.targets, move.kept, strict=True)
        for held, length, target, kept in rows:
            if kept:
                self._drop_oldest(held)
                assert held.slot is not None
                held.snapshots.append((held.length, held.slot))
            elif held.slot is not None and held.slot != target:
                self.slots.release(held.slot)
            held.slot, held.length = target, length
            held.ends.add(length)

    def _call_off(self, held_ones: Sequence[_Held], move: StateMove) -> None:
        """The pass has failed."""
        lost = set(move.targets) if move.writing else set()
        for held, target in zip(held_ones, move.targets, strict=True):
            if target != held.slot:
                self.slots.release(target)
            if held.slot in lost:
                self._go_back(held, held.length)

    def _plan(self, sequences: Sequence[int], keep: Collection[int]) -> StateMove:
        """Slots for the states to come, none of which anyone else has then."""
        move = StateMove([self._held[sequence].slot for sequence in sequences])
        left: dict[int, int] = {}  # users that a slot loses
        for place, sequence in enumerate(sequences):
            held, to_come = self._held[sequence], len(sequences) - place - 1
            kept = self._makes_snapshot(held, sequence in keep, to_come)
            target = held.slot
            while target is not None and self.slots.users(target) - left.get(target, 0) > 1:
                if kept or self.slots.num_free or not self._give_up_snapshot():
                    target = None
            if kept or target is None:
                target = self._take()
                if held.slot is not None and not kept:
                    left[held.slot] = left.get(held.slot, 0) + 1
            move.targets.append(target)
            move.kept.append(kept)
        return move

    def _makes_snapshot(self, held: _Held, wanted: bool, to_come: int) -> bool:
        """Whether the present state becomes one: there is none of this length, and memory.

        That of the sequences to come in the same pass is left to them.
        """
        last = held.snapshots[-1][0] if held.snapshots else 0
        wanted = wanted or held.length - last >= SNAPSHOT_SPAN
        if not wanted or held.length <= last or not self._num_snapshots:
            return False
        if self.slots.num_free <= to_come:
            self._drop_oldest(held)
        return self.slots.num_free > to_come

    def _drop_oldest(self, held: _Held) -> None:
        """Makes room for one snapshot more."""
        while len(held.snapshots) >= self._num_snapshots:
            self.slots.release(held.snapshots.popleft()[1])

    def _take(self) -> int:
        """A slot; there is one for every sequence, once snapshots give theirs up."""
        while not self.slots.num_free and self._give_up_snapshot():
            pass
        return self.slots.take()

    def _give_up_snapshot(self) -> bool:
        """Drops the oldest snapshot of some sequence; False when there is none."""
        for held in self._held.values():
            if held.snapshots:
                self.slots.release(held.snapshots.popleft()[1])
                return True
        return False
