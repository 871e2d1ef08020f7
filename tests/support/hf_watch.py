"""Hooks on the models of a pair: what each forward pass computes, and faults on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from glimprouter.hf.attention.stateful import StatefulCache

# Set while a RoutedModel is made, which tries its models on pages: no hook counts those passes.
TRIAL: ContextVar[bool] = ContextVar("trial", default=False)


class Computed(NamedTuple):
    """A token that went through a model."""

    slot: int
    position: int
    token: int


@dataclass(frozen=True)
class Rows:
    """The rows of one forward pass: row i computes `counts[i]` real tokens of slot `slots[i]`."""

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Rows:
        """Of either engine: padded rows over a cache, or packed rows over pages."""
        cache = arguments.get("past_key_values", arguments.get("cache"))
        if "glimprouter_pass" in arguments or isinstance(cache, StatefulCache):
            counted = arguments.get("glimprouter_pass") or cache.attending.own
            batch = counted.own.batch
            counts = np.diff(batch.cu_seqlens)
            starts = batch.seq_lens - counts
            return cls(*(tuple(x.tolist()) for x in (batch.sequences, starts, counts)))
        plan = cache.layers[0].plan
        return cls(plan.slots, plan.starts, plan.counts)

    def split(self, values: torch.Tensor) -> list[list[int]]:
        """Ids or positions ``[1, T]`` or ``[B, Q]`` by row, without padding."""
        if len(values) == 1 and len(self.counts) > 1:
            parts = torch.split(values[0], list(self.counts))
            return [part.tolist() for part in parts]
        return [row[:count].tolist() for row, count in zip(values, self.counts, strict=True)]


@contextmanager
def watched(model: Any) -> Iterator[list[Computed]]:
    """Lists every real token that the model computes, in order, padding left out.

    Ids and positions are read from the arguments of the forward pass itself.
    """
    seen: list[Computed] = []

    def record(_module: Any, _args: Any, arguments: dict[str, Any]) -> None:
        if TRIAL.get():
            return
        rows = Rows.of(arguments)
        ids = rows.split(arguments["input_ids"])
        positions = rows.split(arguments["position_ids"])
        for row, slot in enumerate(rows.slots):
            pairs = zip(positions[row], ids[row], strict=True)
            seen.extend(Computed(slot, *pair) for pair in pairs)

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def poisoned(model: Any, slot: int, length: int, value: float) -> Iterator[None]:
    """One sequence's logits hold `value` from the pass on that brings it to `length` tokens."""

    def poison(_module: Any, _args: Any, arguments: dict[str, Any], output: Any) -> Any:
        if TRIAL.get():
            return output
        rows = Rows.of(arguments)
        packed = "glimprouter_pass" in arguments
        for row in range(len(rows.slots)):
            if rows.slots[row] == slot and rows.starts[row] + rows.counts[row] >= length:
                own = output.logits[0, row] if packed else output.logits[row]
                if value == -torch.inf:
                    own[:] = value
                else:
                    own[..., 17] = value
        return output

    handle = model.register_forward_hook(poison, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def poisoned_at(model: Any, length: int, value: float) -> Iterator[None]:
    """The logits behind so many tokens of the only sequence hold ``value``, whatever the pass."""

    def spoil(_module: Any, _args: Any, arguments: dict[str, Any], output: Any) -> Any:
        if TRIAL.get():
            return output
        rows = Rows.of(arguments)
        place = length - 1 - rows.starts[0]  # of the token, in the pass
        behind = rows.counts[0] - place  # rows of logits from it to the end
        logits = output.logits[0]
        if 0 <= place < rows.counts[0] and behind <= len(logits):
            logits[len(logits) - behind, 17] = value
        return output

    handle = model.register_forward_hook(spoil, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def spoiled_embeddings(model: Any, first_id: int) -> Iterator[None]:
    """NaN for this id wherever it stands: the keys, values and logits behind it follow."""

    def spoil(_module: Any, arguments: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return torch.where(arguments[0][..., None] == first_id, torch.nan, output)

    handle = model.get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def calling(model: Any, action: Callable[[int], None]) -> Iterator[None]:
    """Calls `action(n)` before the n-th forward pass, n from 0."""
    calls = 0

    def count(_module: Any, _args: Any) -> None:
        nonlocal calls
        if TRIAL.get():
            return
        calls += 1
        action(calls - 1)

    handle = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()
