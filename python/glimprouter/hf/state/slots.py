"""Memory for the states of many sequences: rows of one tensor for each part of a state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glimprouter.hf.state.form import StateForm


class StateSlots:
    """Slots, each with one state. Several may share one: it is written by none of them then.

    Attributes:
        form: What a state is.
        num_slots: How many there are.
        tensors: ``[num_slots + 1, ...]`` for each tensor of the form; the last row is padding's.
    """

    @torch.inference_mode()
    def __init__(self, form: StateForm, num_slots: int) -> None:
        """Free slots.

        Args:
            form: Of the model.
            num_slots: Slots, >= 1.
        """
        self.form = form
        self.num_slots = num_slots
        self.tensors = [
            torch.empty(num_slots + 1, *tensor.shape, dtype=tensor.dtype, device=tensor.device)
            for tensor in form.tensors
        ]
        for tensor in self.tensors:
            tensor[num_slots].zero_()
        self._devices = {tensor.device for tensor in form.tensors}
        self.clear()

    @property
    def num_free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    @property
    def num_bytes(self) -> int:
        """Memory of all of them."""
        return (self.num_slots + 1) * self.form.num_bytes

    def clear(self) -> None:
        """Frees all of them."""
        self._users = [0] * self.num_slots
        self._free = list(reversed(range(self.num_slots)))

    def take(self) -> int:
        """A free slot; what is in it is undefined."""
        slot = self._free.pop()
        self._users[slot] = 1
        return slot

    def share(self, slot: int) -> int:
        """The same slot for one user more."""
        self._users[slot] += 1
        return slot

    def release(self, slot: int) -> None:
        """One user less; free when there is none."""
        self._users[slot] -= 1
        if self._users[slot] == 0:
            self._free.append(slot)

    def users(self, slot: int) -> int:
        """How many it has."""
        return self._users[slot]

    @torch.inference_mode()
    def gather(self, slots: Sequence[int]) -> list[torch.Tensor]:
        """Copies of their states, ``[B, ...]`` for each tensor of the form."""
        if len(slots) == 1:
            return [tensor[slots[0] : slots[0] + 1].clone() for tensor in self.tensors]
        places = self._places(slots)
        return [tensor.index_select(0, places[tensor.device]) for tensor in self.tensors]

    @torch.inference_mode()
    def write(self, slots: Sequence[int], states: Sequence[torch.Tensor]) -> None:
        """Puts states ``[B, ...]`` into distinct slots of one user each."""
        pairs = zip(self.tensors, states, strict=True)
        if len(slots) == 1:
            for tensor, state in pairs:
                tensor[slots[0] : slots[0] + 1].copy_(state)
            return
        places = self._places(slots)
        for tensor, state in pairs:
            tensor.index_copy_(0, places[tensor.device], state)

    def _places(self, slots: Sequence[int]) -> dict[torch.device, torch.Tensor]:
        """The slots where the tensors are, once for each device."""
        index = torch.tensor(slots, dtype=torch.long)
        return {device: index.to(device) for device in self._devices}
