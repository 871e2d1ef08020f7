"""A forward pass that another thread may compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.kv import RaggedBatch


@dataclass(frozen=True)
class BegunPass:
    """A forward pass whose pages are reserved; :meth:`PagedEngine.end` must follow.

    Attributes:
        model: Whose.
        records: Sequences in it.
        starts: Tokens that the model had computed of each.
        batch: Their unseen tokens.
        compute: Gives the logits. Another thread may call it while this one goes on with other
            sequences of the other model, on another device.
        alone: Whether nothing else may be computed meanwhile: it becomes a graph.
    """

    model: str
    records: Sequence[SequenceRecord]
    starts: list[int]
    batch: RaggedBatch
    compute: Callable[[], torch.Tensor]
    alone: bool
