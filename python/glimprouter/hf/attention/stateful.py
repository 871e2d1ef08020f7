"""Forward passes of models that keep states beside pages: rows of equal length, side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers.cache_utils import Cache

from glimprouter.hf.attention.function import leave_note, own_attention
from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.latent import lies_within
from glimprouter.hf.attention.paged import ModelPass, PagedPass
from glimprouter.hf.state.form import StateForm
from glimprouter.hf.state.sequences import SequenceStates
from glimprouter.kv import PagePool, RaggedBatch
from glimprouter.torch import AttendingPass, AttentionOptions


class RowsPass:
    """A packed pass for a model that is given rows ``[B, q]``, and attends in some layers only.

    Attributes:
        own: The pass over the packed tokens.
    """

    __slots__ = ("_layers", "own")

    def __init__(self, own: AttendingPass, attending: Sequence[int]) -> None:
        """A pass that has not begun.

        Args:
            own: The pass over the packed tokens, row behind row.
            attending: The layers that attend, in the order of the pages' layers.
        """
        self.own = own
        self._layers = {layer: place for place, layer in enumerate(attending)}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in :class:`glimprouter.torch.AttendingPass`."""
        rows, _, count, _ = query.shape
        keys = _packed(key)
        values = keys[..., : value.shape[-1]] if lies_within(value, key) else _packed(value)
        out = self.own.attend(self._layers[layer], _packed(query), keys, values, options)
        return out.view(rows, count, *out.shape[2:])


def _packed(states: torch.Tensor) -> torch.Tensor:
    """``[B, heads, q, size]`` as ``[1, heads, B * q, size]``."""
    return states.transpose(0, 1).flatten(1, 2)[None]


class StatefulCache(Cache):
    """The cache that such a model is given: states of the rows; keys and values go to pages.

    Attributes:
        attending: The pass that they go to.
    """

    def __init__(self, layers: list[Any], attending: ModelPass, start: int) -> None:
        """For one pass.

        Args:
            layers: That keep a state, and others.
            attending: The pass.
            start: Tokens before it; of the longest row.
        """
        super().__init__(layers=layers)
        self.attending = attending
        self._start = start

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as they are: with them comes which pass they belong to."""
        leave_note(key_states, self.attending)
        self.attending.give(layer_idx, key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the pass."""
        return self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As of a cache that grows."""
        return self._start + query_length, 0


@torch.inference_mode()
def stateful_forward(
    model: Any,
    pool: PagePool,
    batch: RaggedBatch,
    states: SequenceStates,
    fused: FusedLayers | None = None,
    keep: Collection[int] = (),
) -> torch.Tensor:
    """Computes the batch's tokens; logits of each sequence's last one, ``[B, V]``.

    The caller completes the batch, or abandons it: the states have moved on when this returns.

    Args:
        model: One that can be served so.
        pool: Where the pages are.
        batch: As many tokens of each of B sequences, all of them begun or none.
        states: Of the model's sequences, by the numbers that they have in the batch.
        fused: Layers of the model that compute in their fused form; None leaves all as they are.
        keep: Sequences whose state before the pass becomes a snapshot.

    Raises:
        RuntimeError: A layer did not come by: the model has attention of its own. Or a state is not
            the one that the batch goes on from.
        ValueError: Rows of other lengths, or a state of another shape.
    """
    sequences, lengths = batch.sequences.tolist(), batch.seq_lens.tolist()
    rows = (len(sequences), -1)
    ids = torch.tensor(batch.ids, dtype=torch.long, device=model.device).view(rows)
    positions = torch.tensor(batch.positions, dtype=torch.long, device=model.device).view(rows)
    count = ids.shape[1]
    start, own = max(lengths) - count, PagedPass(pool, batch)
    with (
        fused.installed() if fused else nullcontext(),
        states.moving(sequences, lengths, count, keep) as move,
    ):
        form, before = states.slots.form, states.gather(move)
        logits, after = rows_forward(model, ids, positions, own, form, before, start)
        states.write(move, after)
    return logits


def rows_forward(
    model: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    own: AttendingPass,
    form: StateForm,
    before: Sequence[torch.Tensor] | None,
    start: int,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The model's own code over rows of equal length; logits ``[B, V]`` of the last tokens.

    Args:
        model: One that can be served so.
        ids: ``[B, q]``.
        positions: ``[B, q]``.
        own: The pass over the packed tokens.
        form: Of the model's states.
        before: States of the rows, which may be written into; None for rows without tokens.
        start: Tokens before the pass.

    Returns:
        The logits, and the states afterwards.

    Raises:
        RuntimeError: A layer did not come by: the model has attention of its own.
        ValueError: A state of another shape.
    """
    counted = ModelPass(RowsPass(own, form.attending))
    cache = StatefulCache(form.layers(before), counted, start)
    with own_attention(model.config.get_text_config()):
        output = model(
            input_ids=ids,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            glimprouter_pass=counted,
            **{form.argument: cache},
        )
    if counted.layers != len(form.attending):
        raise RuntimeError(f"{counted.layers} of the model's layers used the attention over pages")
    logits: torch.Tensor = output.logits[:, -1]
    return logits, form.states_of(cache.layers)


def rows_together(passes: Mapping[int, tuple[bool, int]]) -> list[list[int]]:
    """Cuts sequences into passes: rows of equal length together, and those without tokens apart.

    Args:
        passes: For each sequence whether it has no token yet, and how many tokens it adds.
    """
    together: dict[tuple[bool, int], list[int]] = {}
    for sequence, kind in passes.items():
        together.setdefault(kind, []).append(sequence)
    return list(together.values())
