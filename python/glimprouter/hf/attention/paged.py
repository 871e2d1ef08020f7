"""Forward passes over pages: the unseen tokens of many sequences, packed side by side."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glimprouter import _C
from glimprouter.hf.attention.function import own_attention
from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.gathered import gathered_attention, gathers
from glimprouter.hf.attention.given_cache import asked_of_a_cache
from glimprouter.hf.attention.latent import Given, lies_within
from glimprouter.kv import PagePool, RaggedBatch
from glimprouter.torch import AttendingPass, AttentionOptions


class PagedPass:
    """The pass of a batch: on a device long pieces are gathered, the rest is read in its pages.

    Attributes:
        pool: Where the pages are.
        batch: Which tokens, and which pages they write and read.
    """

    __slots__ = ("_latent", "_sharing", "batch", "pool")

    def __init__(self, pool: PagePool, batch: RaggedBatch) -> None:
        """A pass that has not begun."""
        self.pool = pool
        self.batch = batch
        layout = pool.layout(batch.model)
        self._sharing, self._latent = layout.sharing, layout.latent

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in :class:`glimprouter.torch.AttendingPass`, packed."""
        _, heads, tokens, _ = query.shape
        out = query.new_empty((1, tokens, heads, value.shape[-1]))
        if layer not in self._sharing:
            kept = value if layer not in self._latent else None
            if kept is None and not lies_within(value, key):
                raise RuntimeError(f"the values of layer {layer} no longer lie within its keys")
            _C.append_kv(self.pool, layer, self.batch, key, kept)
        if layer not in self._latent and gathers(self.pool, self.batch, options):
            gathered_attention(self.pool, layer, self.batch, query, out, options)
        else:
            _C.paged_attention(self.pool, layer, self.batch, query, out, *options)
        return out


class ModelPass:
    """A pass as the layers of a model meet it: counts them, and has what they gave their cache.

    Attributes:
        own: The pass.
        layers: How many layers have attended.
    """

    __slots__ = ("_given", "layers", "own")

    def __init__(self, own: AttendingPass) -> None:
        """A pass that has not begun."""
        self.own = own
        self.layers = 0
        self._given: dict[int, Given] = {}

    def give(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """What a layer gives its cache, before it attends."""
        self._given[layer] = Given(key, value)

    def given(self, layer: int) -> Given | None:
        """What it gave, once; None where it gave nothing."""
        return self._given.pop(layer, None)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the pass does."""
        self.layers += 1
        return self.own.attend(layer, query, key, value, options, mask)


@torch.inference_mode()
def paged_forward(
    model: Any,
    pool: PagePool,
    batch: RaggedBatch,
    fused: FusedLayers | None = None,
    rows: npt.NDArray[np.int32] | None = None,
) -> torch.Tensor:
    """Computes the batch's tokens; logits of some of them, ``[rows, V]``.

    The caller completes or abandons the batch.

    Args:
        model: One that can be served on pages.
        pool: Where the pages are.
        batch: T tokens of B sequences.
        fused: Layers of the model that compute in their fused form; None leaves all as they are.
        rows: Tokens of the batch whose logits are wanted; None for each sequence's last one.

    Raises:
        RuntimeError: A layer did not come by: the model has attention of its own.
    """
    if fused is not None and fused.whole is not None and fused.whole.takes(len(batch.ids)):
        return fused.whole(pool, batch, rows)
    layers = pool.layout(batch.model).num_layers
    ids, positions = _indices(batch.ids, model)[None], _indices(batch.positions, model)[None]
    keep = _indices(batch.last_rows if rows is None else rows, model)
    with fused.installed() if fused else nullcontext():
        return packed_forward(model, ids, positions, PagedPass(pool, batch), layers, keep)


def packed_forward(
    model: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    attending: AttendingPass,
    num_layers: int | None,
    keep: torch.Tensor | int = 0,
) -> torch.Tensor:
    """The model's own code over packed tokens; logits ``[B, V]``.

    Args:
        model: That is served on pages.
        ids: ``[1, T]``.
        positions: ``[1, T]``.
        attending: The pass.
        num_layers: That must come by; None for any.
        keep: Tokens whose logits are wanted, ``[B]``; 0 for all.

    Raises:
        RuntimeError: A layer did not come by: the model has attention of its own.
    """
    own = ModelPass(attending)
    config = model.config.get_text_config()
    with own_attention(config):
        output = model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=keep,
            glimprouter_pass=own,
            **asked_of_a_cache(config, positions, own),
        )
    if num_layers is not None and own.layers != num_layers:
        raise RuntimeError(f"{own.layers} of the model's layers used the attention over pages")
    logits: torch.Tensor = output.logits[0]
    return logits


def _indices(column: npt.NDArray[np.int32], model: Any) -> torch.Tensor:
    return torch.tensor(column, dtype=torch.long, device=model.device)
