"""A KV cache for many sequences of one model that keeps everything across hand-offs.

Each sequence owns a slot of one buffer per layer. A forward pass names its slots and how many
tokens each adds; ``update()`` writes the new keys and values behind those already there and
returns all of them to plain Hugging Face attention. Nothing is dropped at a hand-off, so no token
is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_FIRST_CAPACITY = 256  # tokens a slot; doubles when a sequence outgrows it


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """One forward pass: which slots, from which position, how many new tokens.

    Attributes:
        slots: ``[B]`` slot of each row.
        starts: ``[B]`` tokens that the slot holds before.
        counts: ``[B]`` new tokens, >= 1; rows are padded on the right to the largest.
        positions: int64 ``[B, Q]``.
        slot_index: int64 ``[B]``.
        key_length: Keys returned to the attention: the largest end of a padded row.
        first_slot: The first slot when the slots are consecutive (their buffer is then returned as
            a view, without a copy), else None.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    positions: torch.Tensor
    slot_index: torch.Tensor
    key_length: int
    first_slot: int | None

    @classmethod
    def make(
        cls, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int], device: Any
    ) -> ForwardPlan:
        """The plan for these rows."""
        query_length = max(counts)
        offsets = torch.arange(query_length, device=device)
        positions = torch.tensor(starts, device=device)[:, None] + offsets
        consecutive = all(slot == slots[0] + i for i, slot in enumerate(slots))
        return cls(
            tuple(slots),
            tuple(starts),
            tuple(counts),
            positions,
            torch.tensor(slots, device=device),
            max(starts) + query_length,
            slots[0] if consecutive else None,
        )


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, ``[slots, heads, capacity, head size]`` each."""

    is_sliding = False  # the window is applied by the mask: a hand-off needs the whole past
    is_compileable = False
    supports_early_init = False

    def __init__(self) -> None:
        """An empty layer; memory comes with the slots that are used."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.plan: ForwardPlan | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates for the shape, type and device of the first keys and values."""

        def buffer(states: torch.Tensor) -> torch.Tensor:
            shape = (1, states.shape[1], _FIRST_CAPACITY, states.shape[3])
            # Zeros: attention multiplies what the mask hides by 0, and 0 times garbage may be NaN.
            return torch.zeros(shape, dtype=states.dtype, device=states.device)

        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.is_initialized = True

    def _reserve(self, slots: int, length: int) -> None:
        assert self.keys is not None
        assert self.values is not None
        held, capacity = self.keys.shape[0], self.keys.shape[2]
        if length <= capacity and slots <= held:
            return
        while capacity < length:
            capacity *= 2
        for name in ("keys", "values"):
            old = getattr(self, name)
            shape = (max(slots, held), old.shape[1], capacity, old.shape[3])
            new = old.new_zeros(shape)
            new[:held, :, : old.shape[2]] = old
            setattr(self, name, new)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes ``[B, heads, Q, head size]`` behind what the slots hold; returns all of it."""
        plan = self.plan
        assert plan is not None, "SlotCache.begin() comes before the forward pass"
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._reserve(max(plan.slots) + 1, plan.key_length)
        return self._write(plan, self.keys, key_states), self._write(
            plan, self.values, value_states
        )

    @staticmethod
    def _write(plan: ForwardPlan, buffer: Any, states: torch.Tensor) -> torch.Tensor:
        if len(plan.slots) == 1:
            slot, start = plan.slots[0], plan.starts[0]
            buffer[slot, :, start : start + states.shape[2]] = states[0]
        else:
            buffer[plan.slot_index[:, None], :, plan.positions] = states.transpose(1, 2)
        visible: torch.Tensor = buffer[:, :, : plan.key_length]
        if plan.first_slot is not None:
            return visible[plan.first_slot : plan.first_slot + len(plan.slots)]
        return visible.index_select(0, plan.slot_index)

    def clear(self, slot: int) -> None:
        """Zeros in the slot again: a sequence that went wrong leaves NaN."""
        if self.is_initialized and slot < len(self.keys):  # type: ignore[arg-type]
            self.keys[slot] = 0  # type: ignore[index]
            self.values[slot] = 0  # type: ignore[index]

    def read(self, slot: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the first keys and values of a slot, ``[heads, length, head size]``."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[slot, :, :length].clone(), self.values[slot, :, :length].clone()

    def write(self, slot: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Puts keys and values of :meth:`read` into a slot."""
        if not self.is_initialized:
            self.lazy_initialization(keys[None], values[None])
        length = keys.shape[1]
        self._reserve(slot + 1, length)
        self.keys[slot, :, :length] = keys  # type: ignore[index]
        self.values[slot, :, :length] = values  # type: ignore[index]

    def get_seq_length(self) -> int:
        """Tokens before this forward pass (of the longest row)."""
        return 0 if self.plan is None else max(self.plan.starts)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of the returned keys, and the position of the first."""
        return (query_length if self.plan is None else self.plan.key_length), 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class SlotCache(Cache):
    """The cache of one model; pass it as ``past_key_values`` after :meth:`begin`."""

    def __init__(self, num_layers: int, num_slots: int) -> None:
        """Empty slots for ``num_slots`` sequences."""
        self._slot_layers = [SlotLayer() for _ in range(num_layers)]
        super().__init__(layers=[*self._slot_layers])
        self.lengths = [0] * num_slots

    def open(self, slot: int, prompt: int) -> None:
        """A slot for a sequence; its prompt needs no pass of its own."""

    def begin(self, slots: Sequence[int], counts: Sequence[int], device: Any) -> ForwardPlan:
        """Announces a forward pass over ``counts`` new tokens of each slot."""
        plan = ForwardPlan.make(slots, [self.lengths[slot] for slot in slots], counts, device)
        for layer in self._slot_layers:
            layer.plan = plan
        return plan

    def commit(self, plan: ForwardPlan) -> None:
        """Counts the new tokens, after the forward pass has succeeded."""
        for slot, start, count in zip(plan.slots, plan.starts, plan.counts, strict=True):
            self.lengths[slot] = start + count

    def truncate(self, slot: int, length: int) -> int:
        """Forgets what a slot holds behind ``length`` tokens; returns how many that were."""
        dropped = max(0, self.lengths[slot] - length)
        self.lengths[slot] -= dropped
        return dropped

    def recomputed(self, slot: int) -> int:
        """Tokens that were computed again for want of their state: none, keys and values stay."""
        return 0

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Gives an empty slot what another holds."""
        self.restore(target, self.read(source))

    @torch.inference_mode()
    def read(self, slot: int) -> dict[str, torch.Tensor]:
        """What a slot holds, ``[heads, tokens, head size]`` by ``"<layer>.keys"``, ``.values``."""
        held, length = {}, self.lengths[slot]
        for index, layer in enumerate(self._slot_layers if length else ()):
            if layer.is_initialized:  # others share the keys and values of an earlier layer
                held[f"{index}.keys"], held[f"{index}.values"] = layer.read(slot, length)
        return held

    @torch.inference_mode()
    def restore(self, slot: int, held: dict[str, torch.Tensor]) -> None:
        """Puts what :meth:`read` gave into an empty slot.

        Raises:
            ValueError: It is of another number of layers, or of unequal lengths.
        """
        count = len(self._slot_layers)
        indices = [index for index in range(count) if f"{index}.keys" in held]
        names = [f"{index}.{part}" for index in indices for part in ("keys", "values")]
        own = [index for index in range(count) if self._slot_layers[index].is_initialized]
        lengths = {tensor.shape[1] for tensor in held.values()}
        if held and (
            sorted(held) != sorted(names) or len(lengths) != 1 or (own and own != indices)
        ):
            raise ValueError(f"the saved keys and values are not those of {count} layers")
        for index in indices:
            self._slot_layers[index].write(slot, held[f"{index}.keys"], held[f"{index}.values"])
        self.lengths[slot] = lengths.pop() if lengths else 0

    @torch.inference_mode()
    def free(self, slot: int) -> None:
        """Empties a slot for another sequence."""
        self.lengths[slot] = 0
        for layer in self._slot_layers:
            layer.clear(slot)
