"""Forward passes over whole texts, one at a time: no padding, whatever the model's attention."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def last_logits(model: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Logits behind the last ``count`` tokens of one text, ``[count, V]``; no others are made."""
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": count} if keeps else {}
    logits: torch.Tensor = model(ids, **options).logits
    return logits[0, -count:]


def ids_of(model: Any, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
    """The ids of each text as a batch of one, ``[1, T]``, where the model is.

    Raises:
        ValueError: No text, or an empty one.
    """
    if not texts or not all(len(ids) for ids in texts):
        raise ValueError("give at least one list of ids, none of them empty")
    import torch

    for ids in texts:
        yield torch.tensor([list(ids)], device=model.device)
