"""Hugging Face models on pages: the attention function, and whether a model can be served by it.

The attention function writes the new keys and values into the pages of their sequences and attends
over those pages. It is told which by one of two ways:

- the engine packs the unseen tokens of all sequences side by side, ``[1, T]``, with their own
  positions and without a mask, and passes a :class:`PagedPass` through the model's arguments;
- under ``generate()``, :class:`glimprouter.hf.PagedCache` leaves a note on the keys, and the
  padding comes as the mask ``[B, tokens]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from glimprouter import _C
from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.gathered import gathered_attention, gathers
from glimprouter.hf.pair.devices import torch_device
from glimprouter.hf.pair.facts import rope_depends_on_length
from glimprouter.kv import KvCache, KvLayout, PagePool, RaggedBatch
from glimprouter.torch import AttendingPass, PassHandle, PassTables

ATTENTION_NAME = "glimprouter"
# The same function under a name without a mask: transformers would look for packed sequences in
# every pass of the engine, only to hand over nothing.
_PACKED_NAME = "glimprouter_packed"
_NOTE = "_glimprouter_layer"  # attribute of the keys that a PagedCache has seen
# Of a CPU's pages: what a core reads of one head is then long enough to be fetched ahead.
PAGE_SIZE = 256
# Of a GPU's at most: its blocks share a context page by page.
DEVICE_PAGE_TOKENS = 64
_PROBE_LENGTHS = (7, 5)  # two sequences side by side, one of them in two pieces
# Root mean square of the difference over the spread of the logits. Rounding in the narrow types is
# some hundredths; an attention that is not the model's own gives about 1.
_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


class PackedPass(AttendingPass, Protocol):
    """A forward pass over packed tokens, as the attention function sees it.

    Attributes:
        layers: How many layers have attended.
    """

    layers: int


class PagedPass:
    """What the attention function is told about a forward pass.

    Attributes:
        pool: Where the pages are.
        batch: Which tokens, and which pages they write and read.
        layers: How many layers have attended.
    """

    __slots__ = ("batch", "layers", "pool")

    def __init__(self, pool: PagePool, batch: RaggedBatch) -> None:
        """A pass that has not begun."""
        self.pool = pool
        self.batch = batch
        self.layers = 0

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: tuple[float, int, float],
    ) -> torch.Tensor:
        """As in :class:`PackedPass`."""
        _, heads, tokens, size = query.shape
        scale, window, softcap = options
        out = query.new_empty((1, tokens, heads, size))
        _C.append_kv(self.pool, layer, self.batch, key, value)
        if gathers(self.pool, self.batch, softcap):
            gathered_attention(self.pool, layer, self.batch, query, out, scale=scale, window=window)
        else:
            _C.paged_attention(self.pool, layer, self.batch, query, out, scale, window, softcap)
        self.layers += 1
        return out


class NotedLayer(Protocol):
    """A layer of a cache whose keys and values are in pages."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        options: tuple[float, int, float],
    ) -> torch.Tensor:
        """``[B, heads, T, size]`` to ``[B, T, heads, size]``; options: scale, window, softcap."""


def leave_note(key: torch.Tensor, layer: NotedLayer) -> None:
    """Tells the attention function which layer of which cache these keys belong to."""
    setattr(key, _NOTE, layer)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    glimprouter_pass: PackedPass | PassTables | PassHandle | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """``[B, heads, T, size]`` in, ``[B, T, heads, size]`` out; B is 1 but under a PagedCache."""
    if kwargs.get("s_aux") is not None:
        raise RuntimeError("it has attention sinks, which are not supported")
    size = query.shape[-1]
    scale = size**-0.5 if scaling is None else float(scaling)
    window, cap, layer = sliding_window or 0, softcap or 0.0, module.layer_idx
    if glimprouter_pass is None:
        noted = cast("NotedLayer | None", getattr(key, _NOTE, None))
        if noted is None:
            raise RuntimeError(
                "this attention needs a PagedPass, which RoutedModel gives, or"
                " past_key_values=glimprouter.hf.PagedCache(model)"
            )
        return noted.attend(query, key, value, attention_mask, (scale, window, cap)), None
    if isinstance(glimprouter_pass, PassTables):  # in a compiled graph
        attended: torch.Tensor = torch.ops.glimprouter.attend(
            query, key, value, *glimprouter_pass, layer, scale, window, cap
        )
        return attended, None
    if isinstance(glimprouter_pass, PassHandle):
        named: torch.Tensor = torch.ops.glimprouter.attend_named(
            query, key, value, *glimprouter_pass, layer, scale, window, cap
        )
        return named, None
    return glimprouter_pass.attend(layer, query, key, value, (scale, window, cap)), None


def _padding_mask(
    attention_mask: torch.Tensor | None = None, use_vmap: bool = False, **kwargs: Any
) -> torch.Tensor | None:
    """The mask of the padding as it is: causal order and windows are the attention's own."""
    if use_vmap:
        raise ValueError("attention over pages is causal; this model asks for another mask")
    return attention_mask


for _name in (ATTENTION_NAME, _PACKED_NAME):
    AttentionInterface.register(_name, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _padding_mask)


@contextmanager
def own_attention(config: Any, name: str = _PACKED_NAME) -> Iterator[None]:
    """The model is the user's: it has its own attention back after each pass."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def kv_layout(model: Any) -> KvLayout:
    """The layout of a model's keys and values, from its configuration."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    on_cpu = model.device.type == "cpu"
    return KvLayout(
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        page_size=PAGE_SIZE if on_cpu else min(PAGE_SIZE, DEVICE_PAGE_TOKENS),
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
    state: PackedPass,
    num_layers: int,
    keep: torch.Tensor | int = 0,
) -> torch.Tensor:
    """The model's own code over packed tokens; logits ``[B, V]``.

    Args:
        model: That is served on pages.
        ids: ``[1, T]``.
        positions: ``[1, T]``.
        state: Attends; no layer has come by yet.
        num_layers: That must come by.
        keep: Tokens whose logits are wanted, ``[B]``; 0 for all.

    Raises:
        RuntimeError: A layer did not come by: the model has attention of its own.
    """
    with own_attention(model.config.get_text_config()):
        output = model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=keep,
            glimprouter_pass=state,
        )
    if state.layers != num_layers:
        raise RuntimeError(f"{state.layers} of the model's layers used the attention over pages")
    logits: torch.Tensor = output.logits[0]
    return logits


def _indices(column: npt.NDArray[np.int32], model: Any) -> torch.Tensor:
    return torch.tensor(column, dtype=torch.long, device=model.device)


def why_not_paged(model: Any, device: str = "cpu", fused: FusedLayers | None = None) -> str | None:
    """Why a model cannot be served on pages of a device, or None when it can: found by trying.

    Two short sequences are computed side by side, in pieces, and compared with the model's own
    attention: a model that drops our arguments, has attention sinks, or keeps other state differs.

    Args:
        model: Of transformers.
        device: Of the pages.
        fused: Tried too: layers in their fused form on pages, against the model's own.
    """
    if str(model.device) != torch_device(device):
        return f"it is on {model.device}, and the pages are on {device}"
    if rope_depends_on_length(model.config.get_text_config()):
        return (
            "its rotary embeddings (longrope) depend on the longest sequence of a pass, and packed"
            " batches hold several"
        )
    try:
        layout = kv_layout(model)
        if layout.head_dim % 16 != 0:
            return f"its head size of {layout.head_dim} is no multiple of 16"
        error = _probe(model, layout, device, fused)
    except Exception as failure:  # whatever a model's code does with an attention it does not know
        return f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
    tolerance = _PROBE_TOLERANCE[model.dtype]
    if not error <= tolerance:
        return f"its logits differ by {error:.2g} of their spread from its own attention's"
    return None


@torch.inference_mode()
def _probe(model: Any, layout: KvLayout, device: str, fused: FusedLayers | None) -> float:
    """Difference to the model's own attention: root mean square over the spread of the logits."""
    width = model.get_output_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(0, width, (length,), generator=generator).tolist()
        for length in _PROBE_LENGTHS
    ]
    pool = PagePool([layout], 8 * layout.page_bytes, layout.page_bytes, device)
    cache = KvCache(pool, len(prompts))
    rows = [cache.open([prompt[:3]]) for prompt in prompts]
    config = model.config.get_text_config()
    own = config._attn_implementation
    reference = "eager" if own == ATTENTION_NAME else own  # ours would be compared with itself
    worst = 0.0
    for start, end in ((0, 3), (3, 4), (4, None)):
        if start:
            for row, prompt in zip(rows, prompts, strict=True):
                cache.append(0, row, prompt[start:end])
        batch = cache.prepare(0, rows)
        logits = paged_forward(model, pool, batch, fused)
        cache.complete(batch)
        for row, prompt in enumerate(prompts):
            with own_attention(config, reference):
                output = model(torch.tensor([prompt[:end]], device=model.device), use_cache=False)
            expected = output.logits[0, -1].float()
            spread = float(expected.std()) + 1e-6
            difference = (logits[row].float() - expected).square().mean().sqrt()
            if not torch.isfinite(difference):
                return float("inf")
            worst = max(worst, float(difference) / spread)
    return worst
