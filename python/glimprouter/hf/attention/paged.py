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
from glimprouter.hf.state.form import StateForm
from glimprouter.kv import KvLayout, PagePool, RaggedBatch
from glimprouter.torch import AttendingPass, AttentionOptions

# Of a CPU's pages: what a core reads of one head is then long enough to be fetched ahead.
PAGE_SIZE = 256
# Of a GPU's at most: its blocks share a context page by page.
DEVICE_PAGE_SIZE = 64


class PagedPass:
    """The pass of a batch: on a device long pieces are gathered, the rest is read in its pages.

    Attributes:
        pool: Where the pages are.
        batch: Which tokens, and which pages they write and read.
    """

    __slots__ = ("batch", "pool")

    def __init__(self, pool: PagePool, batch: RaggedBatch) -> None:
        """A pass that has not begun."""
        self.pool = pool
        self.batch = batch

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
        _, heads, tokens, size = query.shape
        out = query.new_empty((1, tokens, heads, size))
        _C.append_kv(self.pool, layer, self.batch, key, value)
        if gathers(self.pool, self.batch, options):
            scale, window = options.scale, options.window
            gathered_attention(self.pool, layer, self.batch, query, out, scale=scale, window=window)
        else:
            _C.paged_attention(self.pool, layer, self.batch, query, out, *options)
        return out


class CountedPass:
    """Counts the layers that attend in a pass.

    Attributes:
        own: The pass.
        layers: How many layers have attended.
    """

    __slots__ = ("layers", "own")

    def __init__(self, own: AttendingPass) -> None:
        """A pass that has not begun."""
        self.own = own
        self.layers = 0

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


def kv_layout(model: Any, form: StateForm | None = None) -> KvLayout:
    """The layout of a model's keys and values.

    Args:
        model: A model of transformers.
        form: Of its states, which says what the layers that attend have; None for a model where
            all do: its configuration says it.
    """
    config = model.config.get_text_config()
    on_cpu = model.device.type == "cpu"
    if form is None:
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    else:
        layers, kv_heads, head_dim = len(form.attending), form.num_kv_heads, form.head_dim
    return KvLayout(
        num_layers=layers,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        page_size=PAGE_SIZE if on_cpu else min(PAGE_SIZE, DEVICE_PAGE_SIZE),
        dtype=str(model.dtype).removeprefix("torch."),  # type: ignore[arg-type]
    )


@torch.inference_mode()
def paged_forward(
    model: Any, pool: PagePool, batch: RaggedBatch, fused: FusedLayers | None = None
) -> torch.Tensor:
    """Computes the batch's tokens; logits of each sequence's last one, ``[B, V]``.

    The caller completes or abandons the batch.

    Args:
        model: One that can be served on pages.
        pool: Where the pages are.
        batch: T tokens of B sequences.
        fused: Layers of the model that compute in their fused form; None leaves all as they are.

    Raises:
        RuntimeError: A layer did not come by: the model has attention of its own.
    """
    layers = pool.layout(batch.model).num_layers
    ids, positions = _indices(batch.ids, model)[None], _indices(batch.positions, model)[None]
    keep = _indices(batch.last_rows, model)
    with fused.installed() if fused else nullcontext():
        return packed_forward(model, ids, positions, PagedPass(pool, batch), layers, keep)


def packed_forward(
    model: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    attending: AttendingPass,
    num_layers: int,
    keep: torch.Tensor | int = 0,
) -> torch.Tensor:
    """The model's own code over packed tokens; logits ``[B, V]``.

    Args:
        model: That is served on pages.
        ids: ``[1, T]``.
        positions: ``[1, T]``.
        attending: The pass.
        num_layers: That must come by.
        keep: Tokens whose logits are wanted, ``[B]``; 0 for all.

    Raises:
        RuntimeError: A layer did not come by: the model has attention of its own.
    """
    counted = CountedPass(attending)
    with own_attention(model.config.get_text_config()):
        output = model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=keep,
            glimprouter_pass=counted,
        )
    if counted.layers != num_layers:
        raise RuntimeError(f"{counted.layers} of the model's layers used the attention over pages")
    logits: torch.Tensor = output.logits[0]
    return logits


def _indices(column: npt.NDArray[np.int32], model: Any) -> torch.Tensor:
    return torch.tensor(column, dtype=torch.long, device=model.device)
