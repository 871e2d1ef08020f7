"""The states of many sequences of one model, each in a cache of the model's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from glimprouter.hf.engine.native_state import (
    bytes_of,
    can_be_cut,
    copy_state,
    cut,
    load_state,
    save_state,
)
from glimprouter.hf.sequence.saved import bytes_as_tensor, tensor_as_bytes
from glimprouter.hf.state.ends import SNAPSHOT_SPAN, PassEnds

_STATE, _ENDS = "state", "ends"  # names in what is saved


@dataclass
class _Slot:
    """What is kept of one sequence.

    Attributes:
        state: The model's cache; None before the first token.
        length: Tokens that it has seen.
        ends: Where its forward passes ended.
        snapshots: States of earlier lengths, with these.
        recomputed: Tokens that were computed again, for want of a snapshot at the right place.
    """

    state: Any = None
    length: int = 0
    ends: PassEnds = field(default_factory=PassEnds)
    snapshots: deque[tuple[int, Any]] = field(default_factory=deque)
    recomputed: int = 0


class NativeCache:
    """A slot a sequence. What only grows can be cut; other states go back to a snapshot.

    Attributes:
        lengths: Tokens that each slot holds.
    """

    def __init__(
        self,
        num_slots: int,
        num_snapshots: int,
        empty: Callable[[], Any],
        first: Callable[[], Any],
        kept: Sequence[Any],
        prompts_alone: bool = False,
    ) -> None:
        """Empty slots.

        Args:
            num_slots: Slots.
            num_snapshots: Snapshots of a slot, >= 0; the newest are kept.
            empty: Makes the state of a sequence without tokens.
            first: Makes some state that holds a token, for saved ones to be read into.
            kept: What all states share.
            prompts_alone: Whether a prompt has a pass of its own, as ``generate()`` does it.
        """
        self._slots = [_Slot() for _ in range(num_slots)]
        self._num_snapshots = num_snapshots
        self._empty = empty
        self._first = first
        self._kept = kept
        self._prompts_alone = prompts_alone

    def open(self, slot: int, prompt: int) -> None:
        """An empty slot for a sequence whose prompt has so many tokens."""
        self._slots[slot] = _Slot(ends=PassEnds([prompt] if self._prompts_alone else ()))

    @property
    def lengths(self) -> list[int]:
        """Tokens that each slot holds."""
        return [slot.length for slot in self._slots]

    def num_bytes(self, slot: int) -> int:
        """Memory of a slot: of its state and of the snapshots."""
        held = self._slots[slot]
        return bytes_of([held.state, held.snapshots])

    def recomputed(self, slot: int) -> int:
        """Tokens that were computed again, for want of a snapshot."""
        return self._slots[slot].recomputed

    def state(self, slot: int) -> Any:
        """The state of a slot, to be given to the model."""
        held = self._slots[slot]
        if held.length == 0:
            held.state = self._empty()
        return held.state

    def pieces(self, slot: int, count: int) -> list[int]:
        """Lengths of the pieces in which the next tokens are computed; more than one only again."""
        held = self._slots[slot]
        cuts = [held.length, *held.ends.up_to(held.length, held.length + count)]
        return [after - before for before, after in pairwise(cuts)]

    def advance(self, slot: int, state: Any, count: int) -> None:
        """Takes over the state behind a pass over so many tokens."""
        held = self._slots[slot]
        held.state = state
        held.length += count
        held.ends.add(held.length)
        last = held.snapshots[-1][0] if held.snapshots else 0
        wanted = count > 1 or held.length - last >= SNAPSHOT_SPAN
        if wanted and self._num_snapshots and held.length > last and not can_be_cut(state):
            held.snapshots.append((held.length, copy_state(state, self._kept)))
            while len(held.snapshots) > self._num_snapshots:
                held.snapshots.popleft()

    def spoil(self, slot: int) -> None:
        """A pass failed on the way: its state may hold some of it, and is given up."""
        held = self._slots[slot]
        if can_be_cut(held.state):
            cut(held.state, held.length)
        else:
            self._go_back(held, held.length)

    def truncate(self, slot: int, length: int) -> int:
        """Forgets what a slot holds behind ``length`` tokens, and more where it must.

        Returns:
            How many tokens behind ``length`` there were.
        """
        held = self._slots[slot]
        dropped = max(0, held.length - length)
        if dropped == 0:
            return 0
        if length > 0 and can_be_cut(held.state):
            cut(held.state, length)
            held.length = length
        else:
            self._go_back(held, length)
        held.ends.cut(length)
        return dropped

    def _go_back(self, held: _Slot, length: int) -> None:
        """To the last snapshot within ``length`` tokens, or to the beginning."""
        while held.snapshots and held.snapshots[-1][0] > length:
            held.snapshots.pop()
        kept, state = held.snapshots[-1] if held.snapshots else (0, None)
        held.recomputed += length - kept
        held.state = None if state is None else copy_state(state, self._kept)
        held.length = kept

    def copy(self, source: int, target: int) -> None:
        """Gives an empty slot what another holds."""
        held = self._slots[source]
        self._slots[target] = _Slot(
            None if held.state is None else copy_state(held.state, self._kept),
            held.length,
            PassEnds(held.ends),
            deque(held.snapshots),  # never written into
        )

    def read(self, slot: int) -> dict[str, torch.Tensor]:
        """What a slot holds: tensors of the state, and what says where they belong.

        Raises:
            ValueError: The state holds what cannot be saved.
        """
        held = self._slots[slot]
        if held.length == 0:
            return {}
        text, tensors = save_state(held.state)
        return {
            **{f"{_STATE}.{name}": tensor for name, tensor in tensors.items()},
            _STATE: bytes_as_tensor(text.encode()),
            _ENDS: torch.tensor([held.length, *held.ends]),
        }

    def restore(self, slot: int, held: dict[str, torch.Tensor]) -> None:
        """Puts what :meth:`read` gave into an empty slot.

        Raises:
            ValueError: It is of another kind of state.
        """
        if not held:
            return
        if _STATE not in held or _ENDS not in held:
            raise ValueError("the saved state is not of a cache of the model's own")
        prefix = f"{_STATE}."
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in held.items()
            if name.startswith(prefix)
        }
        text = tensor_as_bytes(held[_STATE].cpu()).decode()
        length, *ends = held[_ENDS].tolist()
        self._slots[slot] = _Slot(load_state(self._first(), text, tensors), length, PassEnds(ends))

    def free(self, slot: int) -> None:
        """Empties a slot for another sequence."""
        self._slots[slot] = _Slot()
