"""Whether a model can be served on pages: found by trying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from glimprouter.hf.attention.function import ATTENTION_NAME
from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.layers import kv_layout, layers_of, why_not_attended
from glimprouter.hf.attention.paged import paged_forward
from glimprouter.hf.attention.stateful import rows_together, stateful_forward
from glimprouter.hf.pair.devices import torch_device
from glimprouter.hf.pair.facts import rope_depends_on_length
from glimprouter.hf.state.form import StateForm, find_state_form
from glimprouter.hf.state.sequences import SequenceStates
from glimprouter.hf.state.slots import StateSlots
from glimprouter.hf.trial.trial import Passes, Trial
from glimprouter.kv import KvCache, KvLayout, PagePool


def trial_of(model: Any) -> Trial:
    """The trial of a model, whose own attention may be ours: it would be compared with itself."""
    own = model.config.get_text_config()._attn_implementation
    return Trial(model, "eager" if own == ATTENTION_NAME else None)


def why_not_paged(
    model: Any,
    device: str = "cpu",
    fused: FusedLayers | None = None,
    trial: Trial | None = None,
) -> str | None:
    """Why a model cannot be served on pages of a device, or None when it can: found by trying.

    A model that drops our arguments, keeps other state, or a window that its attention is not told
    of, differs from its own full passes.

    Args:
        model: A model of transformers.
        device: The device of the pages.
        fused: Tried too: layers in their fused form on pages, against the model's own.
        trial: Of this model; None for one of its own.
    """
    if str(model.device) != torch_device(device):
        return f"it is on {model.device}, and the pages are on {device}"
    if rope_depends_on_length(model.config.get_text_config()):
        return (
            "its rotary embeddings (longrope) depend on the longest sequence of a pass, and packed"
            " batches hold several"
        )
    try:
        form = find_state_form(model)
        layers_of(model, form, again=True)
        layout = kv_layout(model, form)
    except Exception as failure:  # a configuration that is not of this kind at all
        return f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
    if (reason := why_not_attended(layout)) is not None:
        return reason
    trial = trial or trial_of(model)
    return trial.why_not(lambda lengths: _paged_passes(model, layout, form, device, fused, lengths))


def _paged_passes(
    model: Any,
    layout: KvLayout,
    form: StateForm | None,
    device: str,
    fused: FusedLayers | None,
    lengths: Sequence[int],
) -> Passes:
    """Rows on pages of their own, for so many tokens."""
    pages = 2 + sum(length // layout.page_size + 2 for length in lengths)
    pool = PagePool([layout], pages * layout.page_bytes, layout.page_bytes, device)
    cache = KvCache(pool, len(lengths))
    states = None if form is None else SequenceStates(StateSlots(form, len(lengths)), 0)
    opened: dict[int, int] = {}

    def passes(rows: Sequence[int], pieces: Sequence[Sequence[int]]) -> torch.Tensor:
        for row, piece in zip(rows, pieces, strict=True):
            if row in opened:
                cache.append(0, opened[row], piece)
            else:
                opened[row] = cache.open([piece])
                if states is not None:
                    states.open(opened[row])
        sequences = [opened[row] for row in rows]
        if states is None:
            return compute(sequences)
        starts = {sequence: states.length(sequence) for sequence in sequences}
        kinds = {s: (start == 0, cache.length(0, s) - start) for s, start in starts.items()}
        by_sequence: dict[int, torch.Tensor] = {}
        for together in rows_together(kinds):
            by_sequence.update(zip(together, compute(together), strict=True))
        return torch.stack([by_sequence[sequence] for sequence in sequences])

    def compute(sequences: Sequence[int]) -> torch.Tensor:
        batch = cache.prepare(0, sequences)
        if states is None:
            logits = paged_forward(model, pool, batch, fused)
        else:
            logits = stateful_forward(model, pool, batch, states, fused)
        cache.complete(batch)
        return logits

    return passes
